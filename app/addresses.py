"""Group callers' addresses for rate limits."""

import ipaddress

_IPV6_NETWORK_BITS = 64


def network_of(host: str) -> str:
    """Return the address or network that limits count as one caller.

    That is an IPv4 address, or the /64 network of an IPv6 address: a host usually owns its whole network. Other text is
    returned unchanged.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket, or a name
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))
