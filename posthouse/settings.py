"""What one process needs to start: the one table behind `serve --help`, POSTHOUSE_* variables, the TOML file and the docs.

What administrators change at run time is `model/installation.py`. Precedence: option, variable, file, default.
"""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from pydantic import field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from posthouse.model.application import Network, parse_network
from posthouse.model.fields import field

JOBS = ("submission", "delivery", "api", "maintenance")


def default_data_directory() -> Path:
    """/var/lib/posthouse for root, else the XDG state directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/posthouse")
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "posthouse"


class Settings(BaseSettings):
    """The settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix="POSTHOUSE_", frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    data: Path = field(
        default_factory=default_data_directory,
        label="Data directory",
        help="Where the database, large contents and the key file lie.",
        section="Data",
    )
    database: str | None = field(
        None,
        label="Database",
        help="postgresql://user:password@host:port/name. Without it SQLite in the data directory.",
        section="Data",
    )
    keys: str | None = field(
        None,
        label="Key ring",
        help="The key ring itself, in place of the key file in the data directory; lines may be separated by commas.",
        section="Data",
    )
    http: str | None = field(
        None, label="HTTP", help="HOST:PORT for pages and REST, in clear text.", section="Listeners"
    )
    https: str | None = field(
        None, label="HTTPS", help="HOST:PORT for pages and REST over TLS; needs a certificate.", section="Listeners"
    )
    smtp: str | None = field(
        None,
        label="SMTP",
        help="HOST:PORT for mail from applications; STARTTLS is offered where a certificate is set.",
        section="Listeners",
    )
    smtps: str | None = field(
        None, label="SMTPS", help="HOST:PORT for mail over implicit TLS; needs a certificate.", section="Listeners"
    )
    tls_cert: Path | None = field(
        None,
        label="TLS certificate",
        help="PEM file with the certificate and its chain. Read again when it changes.",
        section="Listeners",
    )
    tls_key: Path | None = field(
        None, label="TLS key", help="PEM file with the private key of the certificate.", section="Listeners"
    )
    public_url: str | None = field(
        None,
        label="Public URL",
        help="How people reach this installation, for example https://posthouse.example.org. Links and callbacks use it.",
        section="Listeners",
    )
    hostname: str = field(
        default_factory=socket.getfqdn,
        label="Host name",
        help="How Posthouse names itself to mail servers and clients.",
        section="Listeners",
    )
    proxy_protocol: tuple[str, ...] = field(
        (),
        label="PROXY protocol",
        help="Networks of balancers that announce the client's address by the PROXY protocol (SMTP). May be repeated.",
        section="Listeners",
    )
    trusted_proxy: tuple[str, ...] = field(
        (),
        label="Trusted proxies",
        help="Networks of proxies whose X-Forwarded-For counts (HTTP). May be repeated.",
        section="Listeners",
    )
    metrics_network: tuple[str, ...] = field(
        (), label="Metrics networks", help="Networks that may read /metrics without a token.", section="Listeners"
    )
    workers: int = field(
        1,
        label="Workers",
        help="Processes on this machine that listen on the same ports. Above 1 needs PostgreSQL.",
        section="Work",
        ge=1,
        le=64,
    )
    worker: int = field(
        0,
        label="Worker",
        help="Which of the workers this process is; set by the process that starts them.",
        section="Work",
        ge=0,
        le=64,
    )
    jobs: str = field(
        ",".join(JOBS),
        label="Jobs",
        help="What this process does, comma-separated: submission, delivery, api, maintenance.",
        section="Work",
    )
    max_connections: int = field(
        1000, label="SMTP connections", help="At most so many at once.", section="Limits", ge=1, le=100_000
    )
    max_connections_per_address: int = field(
        100, label="SMTP connections per address", help="At most so many from one address.", section="Limits", ge=1
    )
    memory_octets: int = field(
        128 * 1024 * 1024,
        label="Memory for mail in hand",
        help="Messages between acceptance and delivery are kept in memory up to this; the rest waits in the store.",
        section="Limits",
        unit="octets",
        ge=1024 * 1024,
    )
    log_format: str = field("json", label="Log format", help="json or text.", section="Log", pattern="^(json|text)$")
    log_level: str = field(
        "info", label="Log level", help="debug, info, warning or error.", section="Log",
        pattern="^(debug|info|warning|error)$",
    )  # fmt: skip

    @field_validator("proxy_protocol", "trusted_proxy", "metrics_network", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("proxy_protocol", "trusted_proxy", "metrics_network")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(parse_network(entry)) for entry in value)

    @field_validator("http", "https", "smtp", "smtps")
    @classmethod
    def _listener(cls, value: str | None) -> str | None:
        if value is not None:
            split_listener(value)
        return value

    @field_validator("jobs")
    @classmethod
    def _known_jobs(cls, value: str) -> str:
        unknown = {part.strip() for part in value.split(",")} - set(JOBS)
        if unknown:
            raise ValueError(f"Known jobs are {', '.join(JOBS)}.")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> "Settings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_key: certificate and key are given together.")
        if (self.https or self.smtps) and self.tls_cert is None:
            raise ValueError("tls_cert: a listener with TLS needs a certificate and its key.")
        if self.workers > 1 and not (self.database or "").startswith("postgres"):
            raise ValueError("workers: more than one worker needs PostgreSQL.")
        return self

    @property
    def wanted_jobs(self) -> frozenset[str]:
        """The jobs of this process."""
        return frozenset(part.strip() for part in self.jobs.split(","))

    @property
    def shares_ports(self) -> bool:
        """Whether other processes of this machine listen on the same ports."""
        return self.worker > 0

    def networks(self, name: str) -> tuple[Network, ...]:
        """One of the network lists, parsed."""
        return tuple(parse_network(entry) for entry in getattr(self, name))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options, then variables, then the file that POSTHOUSE_CONFIG names."""
        file = os.environ.get("POSTHOUSE_CONFIG")
        if not file:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(file))


def split_listener(text: str) -> tuple[str, int]:
    """HOST:PORT, with brackets around an IPv6 address. Raises ValueError with a sentence."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise ValueError("Write a listener as HOST:PORT, for example 127.0.0.1:8025 or [::1]:8025.")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    return host, int(port)
