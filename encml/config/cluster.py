"""The cluster file: where the three computing parties are, where keys and shares lie, and the limits they keep.

```yaml
parties:
  - {host: 10.0.0.1, mesh_port: 9100, api_port: 9200}
  - {host: 10.0.0.2, mesh_port: 9100, api_port: 9200}
  - {host: 10.0.0.3, mesh_port: 9100, api_port: 9200}
keys: keys        # relative to this file
store: store
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from encml.config.loading import Config, load_yaml

Port = Annotated[int, Field(ge=1, le=65535)]
LEAST_WHOLE_BITS = 4
"""How many bits a declared range of comparisons has at least beyond the fraction."""
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class PartyConfig(Config):
    """One computing party.

    ``host`` is the name or address by which the others reach it; ``bind``, where it differs (several network
    cards, a container), the address that the party itself listens on. ``mesh_port`` takes the other two parties,
    ``api_port`` owners and clients.
    """

    host: str = Field(min_length=1)
    mesh_port: Port
    api_port: Port
    bind: str | None = Field(default=None, min_length=1)

    @property
    def listen_host(self) -> str:
        """The address to listen on."""
        return self.bind or self.host

    @property
    def mesh_address(self) -> str:
        """``host:port`` for the other parties, as it appears in errors."""
        return f"{self.host}:{self.mesh_port}"

    @property
    def api_address(self) -> str:
        """``host:port`` for owners and clients, as it appears in errors."""
        return f"{self.host}:{self.api_port}"


class ClusterConfig(Config):
    """Three parties and what they agree on; every party and client reads the same file.

    ``timeout``: seconds without any progress after which a peer counts as stalled; longer than the longest local
    computation between two messages. ``connect_timeout``: seconds that a party waits for the others to appear.
    ``threads``: compute threads a party uses. ``max_request_bytes``: largest request body that a party accepts
    from an owner or a client. ``comparison_bits``: the declared range of what is compared, see ``encml.Session``;
    default: all that fixed point can hold.
    """

    parties: tuple[PartyConfig, PartyConfig, PartyConfig]
    keys: Path = Path("keys")
    store: Path = Path("store")
    timeout: Seconds = 10.0
    connect_timeout: Seconds = 30.0
    fraction_bits: int = Field(default=16, ge=8, le=24)
    comparison_bits: int | None = Field(default=None, ge=12, le=64)
    threads: int = Field(default=1, ge=1, le=1024)
    max_request_bytes: int = Field(default=256 * 2**20, ge=1024)

    @model_validator(mode="after")
    def _comparisons_have_whole_bits(self) -> ClusterConfig:
        if self.comparison_bits is not None and self.comparison_bits < self.fraction_bits + LEAST_WHOLE_BITS:
            raise ValueError(
                f"comparison_bits is {self.comparison_bits}, fraction_bits {self.fraction_bits}: a sign and whole bits "
                f"need at least {LEAST_WHOLE_BITS} more than the fraction"
            )
        return self

    @model_validator(mode="after")
    def _addresses_differ(self) -> ClusterConfig:
        taken: dict[tuple[str, int], str] = {}
        for rank, party in enumerate(self.parties):
            for name, port in (("mesh_port", party.mesh_port), ("api_port", party.api_port)):
                key = f"parties[{rank}].{name}"
                other = taken.setdefault((party.host, port), key)
                if other != key:
                    raise ValueError(f"{key} is {party.host}:{port}, as {other} is: every address is used once")
        return self


def load_cluster(path: str | Path) -> ClusterConfig:
    """Read a cluster file; ``keys`` and ``store`` become absolute, relative to the file's folder.

    Raises ConfigError, naming the file, the line and the key.
    """
    config = load_yaml(path, ClusterConfig)
    folder = Path(path).resolve().parent
    return config.model_copy(update={"keys": folder / config.keys, "store": folder / config.store})
