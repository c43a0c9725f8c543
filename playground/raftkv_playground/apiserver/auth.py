"""Who is asking (bearer tokens), and what they may do (RBAC).

Tokens are random strings that the server keeps in memory: static ones handed out at start (the admin's, and those of
ServiceAccounts for the playground's own processes), and those that ``serviceaccounts/token`` issues, which expire and
die with their account. Members of ``system:masters`` may do everything; everyone else what Roles and ClusterRoles
bound to them say.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from raftkv_playground.apiserver.errors import Failure, Object, forbidden, unauthorized
from raftkv_playground.apiserver.store import Store

TOKEN_SECONDS_DEFAULT = 3600
TOKEN_SECONDS_LEAST = 600
TOKEN_SECONDS_MOST = 1 << 32
MASTERS = "system:masters"


@dataclass(frozen=True, slots=True)
class User:
    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def info(self) -> Object:
        """The ``UserInfo`` of reviews."""
        out: Object = {"username": self.name}
        if self.uid:
            out["uid"] = self.uid
        out["groups"] = list(self.groups)
        if self.extra:
            out["extra"] = {k: list(v) for k, v in self.extra}
        return out


ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def service_account(namespace: str, name: str, uid: str = "") -> User:
    """The user that a ServiceAccount is."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    return User(f"system:serviceaccount:{namespace}:{name}", groups, uid)


@dataclass(slots=True)
class _Issued:
    user: User
    expires: float | None = None
    account: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a request wants to do: a verb on a resource, or (``path``) on a URL that is none."""

    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    @property
    def full_resource(self) -> str:
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource


class Authenticator:
    """Tokens and the users that they stand for."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tokens: dict[str, _Issued] = {}

    def add(self, token: str, user: User) -> None:
        """A static token, valid as long as the server runs."""
        self._tokens[token] = _Issued(user)

    def issue(self, namespace: str, account: Object, seconds: int) -> tuple[str, float]:
        """A token of a ServiceAccount, and when it expires (seconds since the epoch)."""
        now = time.time()
        for old in [t for t, i in self._tokens.items() if i.expires is not None and i.expires < now]:
            del self._tokens[old]
        meta = account["metadata"]
        token, expires = secrets.token_urlsafe(32), now + seconds
        user = service_account(namespace, meta["name"], meta["uid"])
        self._tokens[token] = _Issued(user, expires, (namespace, meta["name"]))
        return token, expires

    def user_of(self, token: str) -> User | None:
        """The user of a valid token."""
        issued = self._tokens.get(token)
        if issued is None or (issued.expires is not None and issued.expires < time.time()):
            return None
        if issued.account is not None:
            account = self._store.get(("", "serviceaccounts"), *issued.account)
            if account is None or account["metadata"]["uid"] != issued.user.uid:
                return None
        return issued.user

    def authenticate(self, header: str | None) -> User:
        """The user of an Authorization header; none is anonymous, a bad one 401."""
        if not header:
            return ANONYMOUS
        scheme, _, token = header.partition(" ")
        user = self.user_of(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            raise unauthorized()
        return user


class Authorizer:
    """RBAC over the stored roles and bindings."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def allowed(self, user: User, wanted: Attributes) -> bool:
        if MASTERS in user.groups:
            return True
        return any(_rule_allows(rule, wanted) for rule in self.rules(user, wanted.namespace))

    def check(self, user: User, wanted: Attributes) -> None:
        """403 unless the user may."""
        if self.allowed(user, wanted):
            return
        if wanted.path:
            text = f'forbidden: User "{user.name}" cannot {wanted.verb} path "{wanted.path}"'
            raise Failure(403, "Forbidden", text, {})
        scope = f'in the namespace "{wanted.namespace}"' if wanted.namespace else "at the cluster scope"
        raise forbidden(
            wanted.resource,
            wanted.group,
            wanted.name,
            f'User "{user.name}" cannot {wanted.verb} resource "{wanted.full_resource}" in API group '
            f'"{wanted.group}" {scope}',
        )

    def rules(self, user: User, namespace: str) -> list[Object]:
        """All rules that apply to the user: cluster-wide ones, and those of the namespace."""
        found: list[Object] = []
        rbac = "rbac.authorization.k8s.io"
        for binding in self._store.scan((rbac, "clusterrolebindings")):
            if _binds(binding, user, ""):
                found += self._role(binding["roleRef"], "")
        if namespace:
            for binding in self._store.scan((rbac, "rolebindings"), namespace):
                if _binds(binding, user, namespace):
                    found += self._role(binding["roleRef"], namespace)
        return found

    def _role(self, reference: Object, namespace: str) -> list[Object]:
        cluster = reference["kind"] == "ClusterRole"
        key = ("rbac.authorization.k8s.io", "clusterroles" if cluster else "roles")
        role = self._store.get(key, "" if cluster else namespace, reference["name"])
        return (role or {}).get("rules") or []


def _binds(binding: Object, user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or []:
        match subject["kind"]:
            case "User":
                fits = subject["name"] == user.name
            case "Group":
                fits = subject["name"] in user.groups
            case "ServiceAccount":
                owner = subject.get("namespace") or namespace
                fits = user.name == f"system:serviceaccount:{owner}:{subject['name']}"
            case _:
                fits = False
        if fits:
            return True
    return False


def _has(values: list[str] | None, wanted: str) -> bool:
    return bool(values) and ("*" in (values or []) or wanted in (values or []))


def _rule_allows(rule: Object, wanted: Attributes) -> bool:
    if not _has(rule.get("verbs"), wanted.verb):
        return False
    if wanted.path:
        urls = rule.get("nonResourceURLs") or []
        return any(u == wanted.path or (u.endswith("*") and wanted.path.startswith(u[:-1])) for u in urls)
    if not _has(rule.get("apiGroups"), wanted.group):
        return False
    resources = rule.get("resources") or []
    if not (
        "*" in resources
        or wanted.full_resource in resources
        or (wanted.subresource and f"*/{wanted.subresource}" in resources)
    ):
        return False
    names = rule.get("resourceNames") or []
    return not names or wanted.name in names


DISCOVERY_PATHS = (
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/readyz",
    "/openapi",
    "/openapi/*",
    "/version",
    "/version/",
)
PUBLIC_PATHS = ("/healthz", "/livez", "/readyz", "/version", "/version/")


def bootstrap_objects() -> list[tuple[str, Object]]:
    """(plural, object) of the cluster roles and bindings that every cluster has."""

    def role(name: str, *rules: Object) -> tuple[str, Object]:
        return "clusterroles", {"metadata": {"name": name, "labels": labels}, "rules": list(rules)}

    def binding(name: str, *groups: str, role_name: str | None = None) -> tuple[str, Object]:
        return "clusterrolebindings", {
            "metadata": {"name": name, "labels": labels},
            "roleRef": {"kind": "ClusterRole", "name": role_name or name},
            "subjects": [{"kind": "Group", "name": g} for g in groups],
        }

    labels = {"kubernetes.io/bootstrapping": "rbac-defaults"}
    everything = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}
    reviews = {
        "apiGroups": ["authorization.k8s.io"],
        "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
        "verbs": ["create"],
    }
    who = {"apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"], "verbs": ["create"]}
    read = {"apiGroups": [""], "resources": ["configmaps", "endpoints", "persistentvolumeclaims", "pods", "pods/log"]}
    return [
        role("cluster-admin", everything, {"nonResourceURLs": ["*"], "verbs": ["*"]}),
        role("system:discovery", {"nonResourceURLs": list(DISCOVERY_PATHS), "verbs": ["get"]}),
        role("system:public-info-viewer", {"nonResourceURLs": list(PUBLIC_PATHS), "verbs": ["get"]}),
        role("system:basic-user", reviews, who),
        role("view", {**read, "verbs": ["get", "list", "watch"]}),
        binding("cluster-admin", MASTERS),
        binding("system:discovery", "system:authenticated"),
        binding("system:public-info-viewer", "system:authenticated", "system:unauthenticated"),
        binding("system:basic-user", "system:authenticated"),
    ]
