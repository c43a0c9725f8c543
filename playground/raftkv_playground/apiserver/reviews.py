"""Reviews: questions about identity and rights that are answered and not stored."""

from __future__ import annotations

from raftkv_playground.apiserver import errors, fields, metadata
from raftkv_playground.apiserver.auth import Attributes, Authenticator, Authorizer, User
from raftkv_playground.apiserver.errors import Object
from raftkv_playground.apiserver.fields import Manager
from raftkv_playground.apiserver.kinds import Kind
from raftkv_playground.apiserver.requests import Target
from raftkv_playground.apiserver.resources import Options, Resources
from raftkv_playground.apiserver.schema.shapes import zero


class Reviews:
    def __init__(self, authenticator: Authenticator, authorizer: Authorizer) -> None:
        self._authenticator = authenticator
        self._authorizer = authorizer

    def answer(
        self, resources: Resources, kind: Kind, target: Target, body: Object, user: User, options: Options
    ) -> Object:
        """The review with its status filled in."""
        resources.check_type(kind, body, options)
        item = resources.decode(kind, body, options)
        managers: dict[tuple[str, str, str, str], Manager] = {}
        writer = Manager(options.manager, "Update", kind.api_version, "", metadata.now())
        fields.update(zero(kind.shape), item, kind.shape, managers, writer, {("f:status",)})
        spec = item.get("spec") or {}
        match kind.kind:
            case "SelfSubjectAccessReview":
                item["status"] = self._access(user, spec)
            case "SubjectAccessReview" | "LocalSubjectAccessReview":
                groups = tuple(spec.get("groups") or ())
                item["status"] = self._access(User(spec.get("user", ""), groups), spec)
            case "SelfSubjectRulesReview":
                item["status"] = self._rules(user, spec.get("namespace", "default"))
            case "SelfSubjectReview":
                item["status"] = {"userInfo": user.info()}
                item["metadata"]["creationTimestamp"] = metadata.now()
            case "TokenReview":
                item["status"] = self._token(spec.get("token", ""))
            case _:
                raise errors.method_not_allowed()
        if entries := fields.encode_managers(managers.values()):
            item["metadata"]["managedFields"] = entries
        return item

    def _access(self, user: User, spec: Object) -> Object:
        if wanted := spec.get("resourceAttributes"):
            attributes = Attributes(
                wanted.get("verb", ""),
                wanted.get("group", ""),
                wanted.get("version", ""),
                wanted.get("resource", ""),
                wanted.get("subresource", ""),
                wanted.get("namespace", ""),
                wanted.get("name", ""),
            )
        else:
            path = spec.get("nonResourceAttributes") or {}
            attributes = Attributes(path.get("verb", ""), path=path.get("path", "/"))
        return {"allowed": self._authorizer.allowed(user, attributes)}

    def _rules(self, user: User, namespace: str) -> Object:
        every = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}, {"verbs": ["*"], "nonResourceURLs": ["*"]}]
        rules = every if "system:masters" in user.groups else self._authorizer.rules(user, namespace)
        return {
            "resourceRules": [r for r in rules if r.get("resources")],
            "nonResourceRules": [r for r in rules if r.get("nonResourceURLs")],
            "incomplete": False,
        }

    def _token(self, token: str) -> Object:
        user = self._authenticator.user_of(token)
        if user is None:
            return {"user": {}, "error": "invalid bearer token"}
        return {"authenticated": True, "user": user.info()}
