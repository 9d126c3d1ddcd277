"""What the lab plays: a module a family of software."""

from dataclasses import dataclass, field
from typing import Callable

from link import Link


@dataclass
class Tunnel:
    """Real software that makes a tunnel from the link's client to its server."""

    name: str
    # Brings it up; gives the address that answers inside, or a function that sends something more through.
    start: Callable[[Link], str | Callable[[], None]]
    # Its outer flows by IP protocol and port of the server: the registry's name, and the flow's packets within which it
    # must be certain: the handshake.
    flows: dict[tuple[int, int | None], tuple[str, int]]
    # Address of the server that an approval names.
    peer: str
    # Flows of its that show one sign at most: they must be there, and `other`.
    weak: set[tuple[int, int]] = field(default_factory=set)
    # Without encryption: the flow of a ping inside must have records of its own, which name one of `flows` as their outer.
    is_open: bool = False


@dataclass
class Benign:
    """Real software that makes no tunnel: every flow must be `other`, from first to last."""

    name: str
    play: Callable[[Link], None]
    # The IP protocol and port of the server of the flows that must be there.
    flows: set[tuple[int, int]]


ICMP, TCP, UDP, GRE = 1, 6, 17, 47
