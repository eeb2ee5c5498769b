"""Containers' resources: what downwardAPI shows of them, and the memory that a Pod may use (KUBELET.md 5.5, 7.3)."""

from __future__ import annotations

from collections.abc import Mapping

from fusevol.agent.plugins.plugin import Absent, Objects, Unavailable
from fusevol.agent.plugins.quantity import ONE, ZERO, InvalidQuantity, Quantity, divided, parse
from fusevol.model.errors import VolumeError
from fusevol.model.objects import node_ref
from fusevol.model.pod import Container, Pod, ResourceFieldSelector

HUGE_PAGES = "hugepages-"

Resources = Mapping[str, Quantity]

_DEFAULTED = ("cpu", "memory", "ephemeral-storage")
_POD_LEVEL = ("cpu", "memory")
"""Resources that a Pod as a whole may have (besides huge pages, which are not asked for here)."""


def allocatable(objects: Objects, node: str) -> Resources:
    """The Node's allocatable resources. Raises VolumeError, or ObjectNotKnown."""
    found = objects.get(node_ref(node))
    if isinstance(found, Absent):
        raise VolumeError(f'error retrieving node: node "{node}" not found')
    if isinstance(found, Unavailable):
        raise VolumeError(f"error retrieving node: {found.message}")
    return _parsed(found.literals)


def container_resource(pod: Pod, selector: ResourceFieldSelector, node: Resources) -> str:
    """ExtractResourceValueByContainerNameAndNodeAllocatable: limits that are unset or zero are the Node's."""
    container = _container(pod, selector.container_name)
    divisor = _divisor(selector.divisor)
    where, _, resource = selector.resource.partition(".")
    if where not in ("limits", "requests") or not (resource in _DEFAULTED or resource.startswith(HUGE_PAGES)):
        raise VolumeError(f"unsupported container resource : {selector.resource}")
    declared = _limits(container) if where == "limits" else _requests(container)
    amount = declared.get(resource, ZERO)
    if where == "limits" and amount.is_zero() and resource in _DEFAULTED:
        amount = node.get(resource, amount)
    if resource == "cpu":
        return str(divided(amount.milli_value(), divisor.milli_value()))
    return str(divided(amount.value(), divisor.value()))


def memory_limit(pod: Pod) -> Quantity | None:
    """The memory of the Pod's cgroup: the sum of its containers' limits if all have one, or the Pod's own
    (ResourceConfigForPod in kubelet/cm/helpers_linux.go). None where nothing limits it."""
    limits, every = _container_memory(pod)
    own = _parsed(pod.spec.resources.limits or {} if pod.spec.resources else {})
    if "memory" in own:
        limits = own["memory"]
        every = every or not limits.is_zero()
    if not every or limits.is_zero():
        return None
    overhead = _parsed(pod.spec.overhead or {}).get("memory", ZERO)
    return Quantity(limits.amount + overhead.amount)


def huge_page_sizes(pod: Pod) -> set[str]:
    """The page sizes that some container requests, as written behind `hugepages-`."""
    declared = [pod.spec.resources, *(container.resources for container in _restartable_containers(pod))]
    return {
        name.removeprefix(HUGE_PAGES)
        for resources in declared
        for name in (resources.requests or {} if resources else {})
        if name.startswith(HUGE_PAGES)
    }


def _container_memory(pod: Pod) -> tuple[Quantity, bool]:
    """AggregateContainerLimits: containers and sidecars add up; an init container runs beside the sidecars before it.
    The second value tells whether all of them have a limit."""
    total, every = ZERO.amount, True
    for container in pod.spec.containers or ():
        limit = _limits(container).get("memory", ZERO)
        total += limit.amount
        every = every and not limit.is_zero()
    sidecars = greatest = ZERO.amount
    for container in pod.spec.init_containers or ():
        limit = _limits(container).get("memory", ZERO)
        running = sidecars + limit.amount
        if container.restart_policy == "Always":
            total += limit.amount
            sidecars = running
        greatest = max(greatest, running)
        every = every and running != 0
    return Quantity(max(total, greatest)), every


def _container(pod: Pod, name: str) -> Container:
    for container in _restartable_containers(pod):
        if container.name == name:
            return container
    raise VolumeError(f"container {name} not found")


def _restartable_containers(pod: Pod) -> tuple[Container, ...]:
    """Without ephemeral containers, which have no resources."""
    return (*(pod.spec.containers or ()), *(pod.spec.init_containers or ()))


def _limits(container: Container) -> Resources:
    return _parsed(container.resources.limits or {} if container.resources else {})


def _requests(container: Container) -> Resources:
    return _parsed(container.resources.requests or {} if container.resources else {})


def _divisor(text: str | int | float | None) -> Quantity:
    divisor = ZERO if text is None else _quantity(text)
    return ONE if divisor.is_zero() else divisor


def _parsed(resources: Mapping[str, str | int | float]) -> Resources:
    return {name: _quantity(amount) for name, amount in resources.items()}


def _quantity(text: str | int | float) -> Quantity:
    try:
        return parse(text)
    except InvalidQuantity as error:
        raise VolumeError(str(error)) from None
