"""What tests share: oracles, drivers, servers and old databases of their own."""
