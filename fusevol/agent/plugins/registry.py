"""The volume plugins by name, registered and looked up like kubelet's (KUBELET.md 2.3-2.5)."""

from __future__ import annotations

from collections.abc import Iterable

from fusevol.agent.plugins.configmap import ConfigMapPlugin
from fusevol.agent.plugins.downwardapi import DownwardAPIPlugin
from fusevol.agent.plugins.emptydir import EmptyDirPlugin
from fusevol.agent.plugins.goquote import quote
from fusevol.agent.plugins.messages import aggregate
from fusevol.agent.plugins.names import qualified_name_errors
from fusevol.agent.plugins.plugin import Plugin
from fusevol.agent.plugins.projected import ProjectedPlugin
from fusevol.agent.plugins.secret import SecretPlugin
from fusevol.model.errors import FusevolError, VolumeError
from fusevol.model.pod import Volume


class RegistrationError(FusevolError):
    """The plugins cannot be used together; str() tells all that is wrong. The agent does not start."""


class Registry:
    """All plugins, after InitPlugins."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        """Raises RegistrationError for invalid and for duplicate names."""
        self._plugins: dict[str, Plugin] = {}
        errors: list[str] = []
        for plugin in plugins:
            invalid = qualified_name_errors(plugin.name)
            if invalid:
                errors.append(f"volume plugin has invalid name: {quote(plugin.name)}: {';'.join(invalid)}")
            elif plugin.name in self._plugins:
                errors.append(f"volume plugin {quote(plugin.name)} was registered more than once")
            else:
                self._plugins[plugin.name] = plugin
        if errors:
            raise RegistrationError(
                f"could not initialize volume plugins for KubeletVolumePluginMgr: {aggregate(errors)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of registration."""
        return tuple(self._plugins)

    def find_by_spec(self, volume: Volume) -> Plugin:
        """The plugin that supports the volume. Raises VolumeError if none does, or several."""
        matched = [plugin for plugin in self._plugins.values() if plugin.can_support(volume)]
        if not matched:
            raise VolumeError("no volume plugin matched")
        if len(matched) > 1:
            raise VolumeError(f"multiple volume plugins matched: {','.join(plugin.name for plugin in matched)}")
        return matched[0]


def default_registry() -> Registry:
    """The plugins that fusevol serves, in kubelet's order of probing (cmd/kubelet/app/plugins.go)."""
    return Registry((EmptyDirPlugin(), SecretPlugin(), DownwardAPIPlugin(), ConfigMapPlugin(), ProjectedPlugin()))
