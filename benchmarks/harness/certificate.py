"""A certificate for the servers on loopback."""

import ssl
from pathlib import Path


def certificate(folder: Path) -> tuple[str, str]:
    """A new certificate with its key, and the authority that signed it."""
    import trustme  # only the benchmarks with TLS need it

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    return str(folder / "cert.pem"), str(folder / "ca.pem")


def server_tls(cert: str | None) -> ssl.SSLContext | None:
    """The context of a server with this certificate and key; None without one."""
    if cert is None:
        return None
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert)
    return tls
