"""The stand-in for an Azure ML workspace: see `azureml_api` for what it serves."""

import datetime as dt
import ipaddress
import json
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from synapse_assets.services.process import HOST, Server, Service, choose_ports

# The name of its cloud, which azure-ai-ml looks up in what the stand-in tells of itself.
CLOUD_NAME = "StandIn"
# Environment variable of the stand-in that holds the variables of its nodes, as JSON.
NODE_VARIABLES = "SYNAPSE_ASSETS_ML_NODE_VARIABLES"

# What `AzureMLCpu` names where the stand-in serves.
ML_SUBSCRIPTION = "00000000-0000-0000-0000-000000000000"
ML_RESOURCE_GROUP = "stand-in"
ML_WORKSPACE = "stand-in"

# The folder of its certificates in its own.
TLS = "tls"

_VALID = dt.timedelta(days=30)


class AzureMLStandIn(Service):
    """A workspace of Azure ML whose command jobs are processes of this machine.

    Once it has ended it knows nothing of its clusters and jobs, which end with it.
    """

    def __init__(
        self,
        *,
        node_variables: Mapping[str, str] | None = None,
        folder: Path | None = None,
        port: int | None = None,
    ) -> None:
        """Create the server without starting it.

        Args:
            node_variables: Environment variables by which its nodes log in to a datastore, as
                `Datastore.process_environment` gives them.
            folder: Keeps its files; None for a temporary folder that goes with `stop`.
            port: Where it listens; None for a free port.

        Raises:
            ConfigurationError: The port that was asked for is taken.
        """
        (self.port,) = choose_ports("The Azure ML stand-in", port)
        super().__init__(folder)
        command = [sys.executable, "-m", "synapse_assets.services.azureml_api"]
        self.servers = [
            Server(
                "The Azure ML stand-in",
                [*command, str(self.port), self.folder],
                log_file=self.folder / "azureml.log",
                environment={NODE_VARIABLES: json.dumps(dict(node_variables or {}))},
            )
        ]

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"https://{HOST}:{self.port}"

    @property
    def client_variables(self) -> Mapping[str, str]:
        """The environment variables by which azure-ai-ml takes it for a cloud, and trusts it."""
        return {
            "ARM_CLOUD_METADATA_URL": f"{self.endpoint}/metadata/endpoints?api-version=2019-05-01",
            "AZUREML_CURRENT_CLOUD": CLOUD_NAME,
            "REQUESTS_CA_BUNDLE": str(self.folder / TLS / "trusted.pem"),
        }

    def is_ready(self) -> bool:
        """Return whether it listens."""
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def prepare(self) -> None:
        """Make its certificate, and remove what is left of the jobs that the last one had."""
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)
        _make_certificates(self.folder / TLS)


def _make_certificates(folder: Path) -> None:
    """Make a certificate for this machine, by an authority whose key is thrown away.

    'server.pem' and 'server.key' are the server's; 'trusted.pem' is what a client trusts: that
    authority, and those that it trusts anyway.
    """
    import certifi
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(
        subject: str, key: ec.EllipticCurvePrivateKey, *extensions: tuple[x509.ExtensionType, bool]
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("throw-away authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + _VALID)
        )
        for extension, is_critical in extensions:
            builder = builder.add_extension(extension, is_critical)
        return builder.sign(authority_key, hashes.SHA256())

    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority_id = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    may = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    may_not = dict.fromkeys((*may, "key_agreement", "encipher_only", "decipher_only"), False)
    authority = certificate(
        "throw-away authority",
        authority_key,
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (x509.KeyUsage(**may_not, key_cert_sign=True, crl_sign=True), True),
        (authority_id, False),
    )
    addresses = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_id)
    server = certificate(
        HOST,
        server_key,
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectAlternativeName(addresses), False),
        (issuer_id, False),
    )
    folder.mkdir(parents=True, exist_ok=True)
    pem = serialization.Encoding.PEM
    (folder / "server.pem").write_bytes(server.public_bytes(pem))
    key_file = folder / "server.key"
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        server_key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    trusted = Path(certifi.where()).read_bytes()
    (folder / "trusted.pem").write_bytes(trusted + b"\n" + authority.public_bytes(pem))
