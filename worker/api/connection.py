"""What the settings make of a connection: its URL, headers and credentials, TLS and limits.

Owns the functions from `ApiSettings` to httpx's own types, and the encoding of paths. It sends nothing
(`exchange.py` does) and holds no state. No error raised here holds a credential.
"""

import base64
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import httpx

from worker import __version__
from worker.api.errors import Misconfigured
from worker.settings import ApiSettings

API_VERSION: Final = "0.8.4"
"""The same in every 3.x release (PROTOCOL 1.2)."""

_IGNORED_CUSTOM_HEADERS: Final = frozenset({"user-agent", "prefect-csrf-token", "prefect-csrf-client"})
_LIMITS: Final = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=25.0)


def path(*segments: str) -> str:
    """Join percent-encoded segments to a path; a last empty one makes the trailing slash.

    Names may hold `#`, `?`, space and non-ASCII (PROTOCOL 1.1). Dots alone would be taken for `..`.
    """
    return "".join(f"/{quote(s, safe='') if s.strip('.') else s.replace('.', '%2E')}" for s in segments)


def base_url(settings: ApiSettings) -> httpx.URL:
    """The API's base URL, without credentials; raises `Misconfigured` for none or an unusable one."""
    if not settings.url:
        raise Misconfigured(
            "connect", "PREFECT_API_URL is not set: set it, for example to http://127.0.0.1:4200/api"
        )
    try:
        url = httpx.URL(settings.url.strip())
    except httpx.InvalidURL as error:
        raise Misconfigured("connect", f"PREFECT_API_URL is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise Misconfigured("connect", "PREFECT_API_URL must begin with http:// or https:// and name a host")
    return url.copy_with(userinfo=b"", query=None, fragment=None)


def request_headers(settings: ApiSettings, attribution: Mapping[str, str]) -> httpx.Headers:
    """The headers of every request (PROTOCOL 1.2); later ones win, custom headers last.

    That key and custom headers can be sent at all is checked by `worker.settings`.
    """
    headers = httpx.Headers({"X-PREFECT-API-VERSION": API_VERSION, "User-Agent": f"headrace/{__version__}"})
    headers.update({name: value for name, value in attribution.items() if sendable(value)})
    url = httpx.URL((settings.url or "").strip())
    if settings.auth_string is not None:
        headers["Authorization"] = _basic(settings.auth_string.get_secret_value().strip())
    elif settings.key is not None:
        headers["Authorization"] = f"Bearer {settings.key.get_secret_value().strip()}"
    elif url.userinfo:
        headers["Authorization"] = _basic(f"{url.username}:{url.password}")
    headers.update(
        {
            name: value
            for name, value in settings.custom_headers.items()
            if name.lower() not in _IGNORED_CUSTOM_HEADERS
        }
    )
    return headers


def _basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode("ascii")


def sendable(value: str) -> bool:
    """Whether a header can carry the value."""
    return bool(value) and value.isascii() and value.isprintable()


def tls_context(settings: ApiSettings, url: httpx.URL) -> ssl.SSLContext:
    """The one TLS context; for plain http one that trusts nobody, because reading a CA bundle takes 45 ms."""
    if url.scheme == "http":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if settings.tls_insecure_skip_verify:
        return httpx.create_ssl_context(verify=False)
    if settings.ssl_cert_file is None:
        return httpx.create_ssl_context()
    source = Path(settings.ssl_cert_file).expanduser()
    try:
        if source.is_dir():
            return ssl.create_default_context(capath=str(source))
        return ssl.create_default_context(cafile=str(source))
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or "no certificate in it"
        raise Misconfigured("connect", f"PREFECT_API_SSL_CERT_FILE={source}: {reason}") from error


def ca_source(settings: ApiSettings) -> str:
    """Where the certificates we trust come from, as an error may name it."""
    return (
        str(settings.ssl_cert_file)
        if settings.ssl_cert_file is not None
        else "the default certificate bundle"
    )


def open_client(
    settings: ApiSettings,
    *,
    url: httpx.URL,
    headers: httpx.Headers,
    transport: httpx.AsyncBaseTransport | None,
) -> httpx.AsyncClient:
    """The HTTP client for this server; `transport` replaces the network and with it TLS.

    Raises `Misconfigured` for a CA file that cannot be read and for HTTP/2 without its package.
    """
    try:
        return httpx.AsyncClient(
            headers=headers,
            verify=tls_context(settings, url) if transport is None else False,
            http2=settings.enable_http2,
            limits=_LIMITS,
            timeout=settings.request_timeout,
            transport=transport,
        )
    except ImportError as error:
        raise Misconfigured("connect", f"PREFECT_API_ENABLE_HTTP2: {error}") from error
