"""TLS towards a Triton server: the files are checked before anything is sent, and refusals are told in one way."""

from __future__ import annotations

import ssl

from ucseg_runtime.errors import BackendUnavailableError
from ucseg_runtime.server_options import ServerAddress, ServerOptionNames, TlsFiles


def tls_context(files: TlsFiles, names: ServerOptionNames) -> ssl.SSLContext:
    """What Python's own TLS needs of the files; `names` are those of the options that name them.

    Raises:
        BackendUnavailableError: A file is missing, is no PEM file, or the key is not that of the certificate.
    """
    try:
        context = ssl.create_default_context(cafile=files.authorities)
        if files.certificate is not None:
            context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError) as error:
        raise BackendUnavailableError(
            f"the TLS files cannot be used ({type(error).__name__}).",
            hint=f"Give PEM files: {names.authorities}, {names.certificate}, {names.key}.",
        ) from error
    return context


def untrusted(address: ServerAddress, reason: str, names: ServerOptionNames) -> BackendUnavailableError:
    """The error for a server whose certificate does not prove who it is."""
    return BackendUnavailableError(
        f"the certificate of {address} is not trusted: {reason}.", hint=f"Name its authority with {names.authorities}."
    )
