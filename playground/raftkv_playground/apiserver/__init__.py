"""The playground's Kubernetes API server. Start it with ``server.serve``; talk to it over HTTPS only.

A request's way: ``server`` (listening, credentials) -> ``api`` (authentication, authorization, routing) ->
``resources`` (the steps of every write), ``watching`` (list and watch), ``subresources``, ``reviews``, ``proxy`` ->
``store``. What differs by kind is in ``kinds`` (the model), ``builtins`` and ``strategies`` (built-in kinds) and
``crd`` (custom ones); ``schema`` knows what values look like; ``fields`` keeps track of who wrote which field.
"""
