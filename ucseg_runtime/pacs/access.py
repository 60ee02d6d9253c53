"""Who may send: application entity titles and addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from ucseg_runtime.pacs.addresses import application_title

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Access:
    """An allow-list.

    Attributes:
        titles: Calling titles that are allowed; empty for any.
        networks: Addresses that are allowed; empty for any.
    """

    titles: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    def allows_address(self, address: str) -> bool:
        """Whether somebody at this address may send."""
        if not self.networks:
            return True
        found = ipaddress.ip_address(address)
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found.version == network.version and found in network for network in self.networks)


def access_from_texts(titles: Iterable[str], networks: Iterable[str]) -> Access:
    """Parse an allow-list.

    Args:
        titles: Application entity titles.
        networks: Addresses such as 10.1.2.3, and networks such as 10.1.0.0/16.

    Raises:
        ValueError: One of them cannot be read.
    """
    return Access(frozenset(map(application_title, titles)), tuple(map(ipaddress.ip_network, networks)))
