"""Secrets show up nowhere, and Dagster resolves them."""

import subprocess
import sys

import dagster as dg
import pytest
from pydantic import ConfigDict, Field, ValidationError

from synapse_assets.datastore.credentials import (
    AccountKey,
    ClientSecret,
    Credential,
    DefaultChain,
    StorageCredential,
)
from synapse_assets.errors import ConfigurationError
from synapse_assets_tests.datastore.credentials.samples import (
    ALL,
    KEY,
    PLANTED,
    SECRET,
    name_of,
    place,
)


class Store(dg.ConfigurableResource["Store"]):
    """A resource with a credential, declared as a datastore declares it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    credential: Credential = Field(
        default=DefaultChain(), discriminator="kind", description="How to log in."
    )


class TestInDagster:
    @pytest.fixture(autouse=True)
    def planted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PLANTED_KEY", KEY)
        monkeypatch.setenv("PLANTED_SECRET", SECRET)

    @pytest.mark.parametrize("credential", ALL, ids=name_of)
    def test_secrets_are_not_shown(self, credential: StorageCredential) -> None:
        store = Store(credential=credential)  # type: ignore[arg-type]
        for thing in (credential, store):
            shown = f"{thing!r} {thing} {thing.model_dump()} {thing.model_dump_json()}"
            assert not [value for value in PLANTED if value in shown]

    def test_errors_of_pydantic_do_not_repeat_them(self) -> None:
        with pytest.raises(ValidationError) as caught:
            AccountKey(key=["planted"])  # type: ignore[arg-type]
        assert "planted" not in str(caught.value)
        with pytest.raises(ValidationError) as caught:
            Store(credential={"nothing": {"key": "planted"}})  # type: ignore[arg-type]
        assert "planted" not in str(caught.value)

    def test_variable_is_resolved_in_a_run_and_shown_nowhere(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        credential = ClientSecret(
            tenant_id="tenant", client_id="client", client_secret=dg.EnvVar("PLANTED_SECRET")
        )
        seen: list[str] = []

        @dg.asset
        def reads(context: dg.AssetExecutionContext, store: Store) -> None:
            context.log.info(f"{store!r} {store} {store.model_dump()}")
            seen.extend(store.credential.hadoop_configuration(place()).secret.values())

        defs = dg.Definitions([reads], resources={"store": Store(credential=credential)})
        with dg.DagsterInstance.ephemeral() as instance:
            result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
                instance=instance
            )
            records = dg.serialize_value(instance.all_logs(result.run_id))
            run = dg.serialize_value(instance.get_run_by_id(result.run_id))
        assert seen == [SECRET]
        assert "ClientSecret(kind=" in records
        output = "".join(capfd.readouterr())
        assert not [text for text in (records, run, output) if SECRET in text]

    def test_what_the_ui_gets_names_the_variable_only(self) -> None:
        from dagster._core.remote_representation.external_data import RepositorySnap

        credential = AccountKey(key=dg.EnvVar("PLANTED_KEY"))
        defs = dg.Definitions(resources={"store": Store(credential=credential)})
        snapshot = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
        assert "PLANTED_KEY" in snapshot
        assert KEY not in snapshot

    def test_variable_is_resolved_outside_of_a_run(self) -> None:
        store = Store(credential=AccountKey(key=dg.EnvVar("PLANTED_KEY")))
        with pytest.raises(ConfigurationError, match=r"'key'.*process_config_and_initialize"):
            store.credential.delta_options(place())
        ready = store.process_config_and_initialize().credential
        assert ready.delta_options(place())["account_key"] == KEY

    def test_default_is_a_credential(self) -> None:
        assert Store().process_config_and_initialize().credential == DefaultChain()


def test_import_loads_nothing_of_azure() -> None:
    program = (
        "import sys, synapse_assets.datastore.credentials, synapse_assets.datastore.location\n"
        "heavy = ('azure', 'adlfs', 'deltalake', 'msal')\n"
        "print([name for name in sys.modules if name.partition('.')[0] in heavy])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
