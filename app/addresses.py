"""Addresses of callers, as limits count them."""

import ipaddress

_IPV6_NETWORK_BITS = 64


def network_of(host: str) -> str:
    """Return what limits count as one caller: an IPv4 address, or the /64 network of an IPv6 address.

    A host with one IPv6 address usually has all addresses of its network. What is no IP address is returned unchanged.
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
