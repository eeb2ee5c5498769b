"""Fields of a Pod that Kubernetes does not have, as strict field validation refuses them: mostly slips of the pen.

Everything that the model has is looked at, and below nothing else: what a probe or an affinity is made of does not
matter to volumes. The status is not written by authors.
"""

from __future__ import annotations

import functools
import typing
from typing import Any

import msgspec

from fusevol.agent.sources.manifests.documents import Path
from fusevol.agent.sources.manifests.fields import Errors
from fusevol.model import pod

VOLUME_TYPES = frozenset(
    {
        *("awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "configMap", "csi", "downwardAPI"),
        *("emptyDir", "ephemeral", "fc", "flexVolume", "flocker", "gcePersistentDisk", "gitRepo", "glusterfs"),
        *("hostPath", "image", "iscsi", "nfs", "persistentVolumeClaim", "photonPersistentDisk", "portworxVolume"),
        *("projected", "quobyte", "rbd", "scaleIO", "secret", "storageos", "vsphereVolume"),
    }
)

_NOT_MODELLED: dict[type[msgspec.Struct], frozenset[str]] = {
    pod.Pod: frozenset({"apiVersion", "kind"}),
    pod.ObjectMeta: frozenset(
        {
            *("generateName", "selfLink", "generation", "deletionGracePeriodSeconds", "ownerReferences", "finalizers"),
            "managedFields",
        }
    ),
    pod.PodSpec: frozenset(
        {
            *("activeDeadlineSeconds", "affinity", "automountServiceAccountToken", "dnsConfig", "dnsPolicy"),
            *("enableServiceLinks", "hostAliases", "hostIPC", "hostNetwork", "hostPID", "hostUsers", "hostname"),
            *("hostnameOverride", "imagePullSecrets", "nodeSelector", "os", "preemptionPolicy", "priority"),
            *("priorityClassName", "readinessGates", "resourceClaims", "restartPolicy", "runtimeClassName"),
            *("schedulerName", "schedulingGates", "schedulingGroup", "serviceAccount", "setHostnameAsFQDN"),
            *("shareProcessNamespace", "subdomain", "terminationGracePeriodSeconds", "tolerations"),
            *("topologySpreadConstraints", "workloadRef"),
        }
    ),
    pod.Container: frozenset(
        {
            *("args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "livenessProbe", "ports"),
            *("readinessProbe", "resizePolicy", "restartPolicyRules", "startupProbe", "stdin", "stdinOnce"),
            *("targetContainerName", "terminationMessagePath", "terminationMessagePolicy", "tty", "workingDir"),
        }
    ),
    pod.VolumeMount: frozenset({"devicePath", "mountPropagation", "recursiveReadOnly"}),
    pod.ResourceRequirements: frozenset({"claims"}),
    pod.SecurityContext: frozenset(
        {
            *("allowPrivilegeEscalation", "appArmorProfile", "capabilities", "privileged", "procMount"),
            *("readOnlyRootFilesystem", "runAsGroup", "runAsNonRoot", "seLinuxOptions", "seccompProfile"),
            "windowsOptions",
        }
    ),
    pod.PodSecurityContext: frozenset(
        {
            *("appArmorProfile", "fsGroupChangePolicy", "runAsGroup", "runAsNonRoot", "seLinuxChangePolicy"),
            *("seLinuxOptions", "seccompProfile", "supplementalGroupsPolicy", "sysctls", "windowsOptions"),
        }
    ),
    pod.Volume: VOLUME_TYPES,
    pod.PodCertificateProjection: frozenset(
        {"maxExpirationSeconds", "credentialBundlePath", "keyPath", "certificateChainPath", "userAnnotations"}
    ),
}
"""What the API (v1.36) has beside what the model has."""


def check_unknown(errors: Errors, path: Path, raw: dict[str, Any], kind: type[msgspec.Struct] = pod.Pod) -> None:
    """`raw` has been converted to `kind` without error."""
    modelled = _types(kind)
    for field, value in raw.items():
        where = (*path, field)
        if field in modelled:
            _check_value(errors, where, value, modelled[field])
        elif field not in _NOT_MODELLED.get(kind, ()):
            errors.add(where, "unknown field")


def _check_value(errors: Errors, path: Path, value: Any, kind: type[msgspec.Struct] | None) -> None:
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_value(errors, (*path, index), item, kind)
    elif kind is not None and kind is not pod.PodStatus and isinstance(value, dict):
        check_unknown(errors, path, value, kind)


@functools.cache
def _types(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct] | None]:
    """The fields, with the struct that each holds, or a list of."""
    return {field.encode_name: _struct(field.type) for field in msgspec.structs.fields(kind)}


def _struct(annotation: Any) -> type[msgspec.Struct] | None:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    return next(filter(None, map(_struct, typing.get_args(annotation))), None)
