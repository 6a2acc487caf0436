# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Reading a cluster from one of its members, through ``kubectl`` and ``nodetool`` only."""

from __future__ import annotations

import re
import time
import typing as t

from ._api import Api, ApiError, Endpoint
from ._core import membership
from ._core.model import MEMBER_APPS, Cluster, KubeNode, Pod, RingNode, compose
from ._core.schema import SchemaVersions
from ._core.testimony import Party
from ._core.topology import thin_spots
from ._errors import CommandFailed, DsmError, TimedOut, Unreadable
from ._node import local_fingerprint, present_state
from ._parse import kubectl, nodetool
from ._runner import Completed, Runner

#: The database's StatefulSet is named ``cassandra`` [doc], so its pods are too, whatever their labels.
_DATABASE_POD = re.compile(r"^cassandra-\d+\Z")
_EXEC_SECONDS = 30.0
_Read = t.TypeVar("_Read")


class ClusterUnavailable(DsmError):
    """The control plane did not answer. ``kind`` is one of the kinds of :mod:`_parse.kubectl`."""

    default_code = "CLUSTER_UNAVAILABLE"

    def __init__(self, message: str, kind: str, remedy: str = "", **details: t.Any) -> None:
        super().__init__(message, remedy=remedy, kind=kind, **details)
        self.kind = kind


class ClusterReader:
    """Reads and, for labels, writes through one member's ``kubectl``.

    :param timeout: seconds for one answer
    """

    def __init__(self, runner: Runner, kubeconfig: str, timeout: float = 60.0) -> None:
        self._runner = runner
        self._kubeconfig = kubeconfig
        self._timeout = timeout

    def kubectl(self, *arguments: str, reading: bool = True, timeout: float | None = None) -> Completed:
        """Run kubectl with the administrator's kubeconfig.

        :raises ClusterUnavailable: it failed, or did not answer in time
        """
        try:
            done = self._runner.run(
                ["kubectl", *arguments],
                timeout=timeout or self._timeout,
                check=False,
                environ={"KUBECONFIG": self._kubeconfig},
                reading=reading,
            )
        except TimedOut as error:
            raise ClusterUnavailable(
                f"kubectl did not answer within {timeout or self._timeout:g} s.",
                kubectl.NO_ANSWER,
                "The control plane may have lost its quorum. Nothing is concluded from its silence.",
                argv=error.details.get("argv"),
            ) from None
        if done.rc != 0:
            kind = kubectl.failure_kind(done.stderr)
            raise ClusterUnavailable(
                f"{' '.join(done.argv)} failed ({kind}): {done.stderr.strip()[-500:] or 'no message'}",
                kind,
                "Run it by hand on that member with the same KUBECONFIG.",
                rc=done.rc,
                argv=done.argv,
            )
        return done

    def nodes(self) -> list[KubeNode]:
        done = self.kubectl("get", "nodes", "-o", "json")
        return kubectl.parse_nodes(done.stdout, done.rc)

    def pods(self) -> list[Pod]:
        """Pods of the backend and of the database, in whatever namespace they are."""
        done = self.kubectl("get", "pods", "--all-namespaces", "-o", "json")
        found = []
        for pod in kubectl.parse_pods(done.stdout, done.rc):
            app = "cassandra" if _DATABASE_POD.match(pod.name) else pod.app
            if app in MEMBER_APPS:
                found.append(Pod(pod.name, app, pod.node, pod.phase, pod.ready, pod.address, pod.namespace))
        return found

    def running_jobs(self, pattern: str) -> list[str]:
        """CronJobs and Jobs whose names match ``pattern`` and that have something running now.

        DSM's backups run as Kubernetes cron jobs [doc]; their names are not public.
        """
        done = self.kubectl("get", "cronjobs,jobs", "--all-namespaces", "-o", "json")
        return [name for name in kubectl.parse_running(done.stdout, done.rc) if re.search(pattern, name)]

    def uid(self) -> str:
        """The uid of namespace ``kube-system``: it lives as long as the cluster does."""
        done = self.kubectl("get", "namespace", "kube-system", "-o", "json")
        return kubectl.parse_uid(done.stdout, done.rc)

    def ring(self, pods: t.Iterable[Pod], prefer_node: str = "") -> tuple[list[RingNode] | None, str | None]:
        """The database ring as the first database pod that answers shows it, this host's own first.

        :returns: the ring, or None and why nobody could be asked
        """
        return self._ask_database(pods, prefer_node, "status", nodetool.parse_status)

    def schema(self, prefer_node: str = "") -> tuple[SchemaVersions | None, str | None]:
        """Which node has which version of the database's schema; the pod is chosen as for the ring.

        :returns: the versions, or None and why nobody could be asked
        """
        try:
            pods = self.pods()
        except (ClusterUnavailable, Unreadable) as error:
            return None, error.message
        return self._ask_database(pods, prefer_node, "describecluster", nodetool.parse_schema_versions)

    def _ask_database(
        self, pods: t.Iterable[Pod], prefer_node: str, command: str, parse: t.Callable[[str], _Read]
    ) -> tuple[_Read | None, str | None]:
        """What the first database pod that answers says to a command of nodetool, or None and why none did."""
        candidates = [pod for pod in pods if pod.app == "cassandra" and pod.ready]
        candidates.sort(key=lambda pod: (pod.node != prefer_node, pod.name))
        problem = "no database pod is ready"
        for pod in candidates:
            try:
                done = self.kubectl(
                    "exec", "-n", pod.namespace, pod.name, "--", "nodetool", command, timeout=_EXEC_SECONDS
                )
                return parse(done.stdout), None
            except (ClusterUnavailable, Unreadable) as error:
                problem = f"{pod.name}: {error.message}"
        return None, problem

    def read(self, prefer_node: str = "") -> Cluster:
        """Nodes, pods and ring together.

        :raises ClusterUnavailable: the control plane does not answer
        :raises Unreadable: it answers something that is not understood
        """
        nodes, pods = self.nodes(), self.pods()
        ring, problem = self.ring(pods, prefer_node)
        return Cluster(
            compose(nodes, pods, ring),
            ring is not None,
            fingerprint=local_fingerprint(self._kubeconfig),
            ring_problem=problem,
        )

    def label(self, node: str, key: str, value: str, overwrite: bool) -> None:
        """Set a label on a node [doc]."""
        extra = ["--overwrite"] if overwrite else []
        self.kubectl("label", "node", node, f"{key}={value}", *extra, reading=False)


def own_standing(
    reader: ClusterReader,
    kubeconfig: str,
    me: Party,
    state_paths: t.Sequence[str],
    api: Api | None = None,
) -> tuple[str, str, Cluster | None]:
    """``(membership, why, cluster)`` of this host, read now. ``cluster`` is None when its control plane is silent."""
    present = present_state(state_paths)
    cluster = None
    if not present_state([kubeconfig]):
        answer = "no_kubeconfig"
    else:
        try:
            cluster = reader.read(prefer_node=me.name)
            answer = "listed" if cluster.member(*me.names) else "not_listed"
        except ClusterUnavailable as error:
            answer = error.kind
        except (Unreadable, CommandFailed) as error:
            answer = error.code.lower()
    status = api.ask_health("plain").status if api is not None else None
    verdict, why = membership.own_membership(membership.SelfEvidence(bool(present), answer, status))
    return verdict, why, cluster


def api_of(params: t.Mapping[str, t.Any], addresses: t.Sequence[str]) -> Api | None:
    """This host's own DSM API, when the options say how to verify it (or where it is)."""
    if not any(params.get(option) for option in ("api_address", "ca_path", "ca_pem")):
        return None
    address = params.get("api_address") or (addresses[0] if addresses else "127.0.0.1")
    endpoint = Endpoint(address, params["api_port"], params.get("api_host"))
    return Api(endpoint, params.get("ca_path"), 10.0, params.get("ca_pem"))


def api_spec() -> dict[str, t.Any]:
    """Options that say how to reach and verify this host's DSM API."""
    return {
        "api_address": {"type": "str"},
        "api_port": {"type": "int", "default": 443},
        "api_host": {"type": "str"},
        "ca_path": {"type": "path"},
        "ca_pem": {"type": "str"},
    }


def describe(cluster: Cluster) -> dict[str, t.Any]:
    """A cluster for results, with quorum and thin spots."""
    nodes = [dict(member.as_dict(), up=member.up(cluster.ring_known)) for member in cluster.members]
    return {
        "uid": cluster.uid,
        "fingerprint": cluster.fingerprint,
        "version": cluster.version,
        "server_mode": cluster.server_mode,
        "nodes": nodes,
        "ring_known": cluster.ring_known,
        "quorum": cluster.picture().as_dict(),
        "state": cluster.picture().state()[0],
        "health": cluster.health,
        "thin_spots": thin_spots(cluster),
    }


def ask_version(api: Api) -> tuple[str | None, str | None]:
    """``(version, server mode)`` from the version endpoint, or nothing when it does not answer."""
    try:
        answer = api.version()
    except ApiError:
        return None, None
    return str(answer["version"]), str(answer["server_mode"]) if answer.get("server_mode") else None


def wait_until(
    seen: t.Callable[[], tuple[bool, t.Any]], timeout: float, interval: float, what: str, remedy: str = ""
) -> tuple[float, t.Any]:
    """Ask again until it is so. Always asks at least once, and once more at the very end.

    :param seen: returns whether it is so, and what was seen; its errors of unavailability count as not yet
    :returns: seconds waited and what was seen
    :raises TimedOut: with the last state
    """
    begun = time.monotonic()
    last: t.Any = None
    while True:
        try:
            done, last = seen()
        except (ClusterUnavailable, Unreadable) as error:
            done, last = False, {"error_code": error.code, "message": error.message}
        elapsed = time.monotonic() - begun
        if done:
            return round(elapsed, 3), last
        if elapsed >= timeout:
            raise TimedOut(
                f"Not seen within {timeout:g} s: {what}.", remedy=remedy, last_state=last, elapsed=round(elapsed, 3)
            )
        time.sleep(min(interval, max(0.0, timeout - elapsed)))
