"""The controllers behind the playground's kinds: what kube-controller-manager and kube-scheduler do on a cluster.

Theory of operation
-------------------
Every controller is level-based: it hears *that* something around an object changed (informers over HTTP), puts the
object's key into a work queue (``runtime``), and looks at the whole state again when the key is taken out. What to do
is decided by a pure function of the observed objects where the logic is worth it (``statefulset.plan``,
``scheduling.choose``, ``services.endpoints_of``, ``garbage.judge``), giving a list of action values (``actions``),
so that the decisions are tested without an API. A failed or refused action puts the key back with a growing delay;
nothing is kept only in memory, so a controller process may be killed at any point.

One module per controller; ``manager`` starts them all in one process under one token.
"""
