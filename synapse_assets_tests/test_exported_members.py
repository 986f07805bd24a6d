import pytest

import synapse_assets


def test_every_exported_name_is_there() -> None:
    assert sorted(synapse_assets._MODULES) == synapse_assets.__all__
    for name in synapse_assets.__all__:
        assert getattr(synapse_assets, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        synapse_assets.nothing  # noqa: B018 -- the access is what is tested
