"""Process kubelets: pods as local processes, several nodes in one process tree.

Theory of operation
-------------------
A pod bound to one of our nodes gets a loopback address of its own, directories for its volumes, and one operating
system process per container, started in its own session with a parent-death signal. There is no container engine and
no mount namespace, so a container *sees the host's file system*; ``rewrite`` replaces the mount paths that stand in
its arguments and environment by the directories behind them. Only images on a white list run (``images``): whoever
may create pods may otherwise start any program.

``worker`` is the life of one pod; ``plan`` (pure) turns a pod's spec into argument vectors and environments;
``status`` (pure) turns what happened into the pod's status; ``volumes`` provides directories, ``process`` starts and
stops, ``probes`` probe, ``logs`` keeps what containers print, ``server`` serves it, ``resolve`` keeps the file by
which pods find each other by name, ``proxy`` forwards Service addresses to ready endpoints, ``node`` is the node's
own object.

Everything is an ordinary client of the API over HTTP; the same kubelet serves a real API server.
"""
