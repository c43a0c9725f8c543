"""Names of the log's invariants, shared by the crash states here and by the simulation of whole clusters."""

from __future__ import annotations

ACKNOWLEDGED_IMPLIES_DURABLE = "ACKNOWLEDGED_IMPLIES_DURABLE"
RECOVERED_IS_PREFIX = "RECOVERED_IS_PREFIX"
DRAIN_NEVER_PASSES_DURABLE = "DRAIN_NEVER_PASSES_DURABLE"
NO_VOTE_TWICE = "NO_VOTE_TWICE"
NO_VOTE_TWICE_AFTER_RING_LOSS = "NO_VOTE_TWICE_AFTER_RING_LOSS"
