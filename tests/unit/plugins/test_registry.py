"""Registration and lookup (KUBELET.md 2.3-2.5)."""

from __future__ import annotations

import pytest

from fusevol.agent.plugins.configmap import ConfigMapPlugin
from fusevol.agent.plugins.registry import RegistrationError, Registry, default_registry
from fusevol.agent.plugins.secret import SecretPlugin
from fusevol.model.errors import VolumeError
from fusevol.model.pod import ConfigMapVolumeSource, SecretVolumeSource, Volume

START = "could not initialize volume plugins for KubeletVolumePluginMgr: "


class Misnamed(ConfigMapPlugin):
    def __init__(self, name: str) -> None:
        self.name = name


def test_the_order_of_probing() -> None:
    assert default_registry().names == (
        "kubernetes.io/empty-dir",
        "kubernetes.io/secret",
        "kubernetes.io/downward-api",
        "kubernetes.io/configmap",
        "kubernetes.io/projected",
    )


def test_a_name_twice() -> None:
    with pytest.raises(RegistrationError) as caught:
        Registry([ConfigMapPlugin(), SecretPlugin(), ConfigMapPlugin()])
    assert str(caught.value) == f'{START}volume plugin "kubernetes.io/configmap" was registered more than once'


def test_an_invalid_name() -> None:
    with pytest.raises(RegistrationError) as caught:
        Registry([Misnamed("a/b/c")])
    assert str(caught.value) == (
        f'{START}volume plugin has invalid name: "a/b/c": a valid label key must consist of alphanumeric characters, '
        "'-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or "
        "'123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS "
        "subdomain prefix and '/' (e.g. 'example.com/MyName')"
    )


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("/x", ["prefix part must be non-empty"]),
        ("x/", ["name part must be non-empty", "name part must consist of"]),
        ("n" * 64, ["name part must be no more than 63 bytes"]),
        ("Upper.Case/x", ["prefix part a lowercase RFC 1123 subdomain must consist of"]),
    ],
)
def test_names_that_are_not_qualified(name: str, texts: list[str]) -> None:
    with pytest.raises(RegistrationError) as caught:
        Registry([Misnamed(name)])
    assert all(text in str(caught.value) for text in texts)


def test_all_errors_are_told() -> None:
    with pytest.raises(RegistrationError) as caught:
        Registry([SecretPlugin(), SecretPlugin(), Misnamed("/x")])
    assert str(caught.value) == (
        f'{START}[volume plugin "kubernetes.io/secret" was registered more than once, '
        'volume plugin has invalid name: "/x": prefix part must be non-empty]'
    )


def test_each_source_has_its_plugin() -> None:
    volume = Volume("v", secret=SecretVolumeSource("s"))
    assert default_registry().find_by_spec(volume).name == "kubernetes.io/secret"


def test_volumes_of_other_plugins() -> None:
    with pytest.raises(VolumeError, match=r"^no volume plugin matched$"):
        default_registry().find_by_spec(Volume("host-path"))


def test_a_volume_of_two_plugins() -> None:
    both = Volume("v", config_map=ConfigMapVolumeSource("c"), secret=SecretVolumeSource("s"))
    message = r"^multiple volume plugins matched: kubernetes.io/secret,kubernetes.io/configmap$"
    with pytest.raises(VolumeError, match=message):
        default_registry().find_by_spec(both)
