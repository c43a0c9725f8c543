"""Wing and Gong's search over whole states, for histories of a few operations: the oracle of the checker's tests.

It knows nothing of what revisions mean: it tries every order that respects real time, with every choice of unknown
operations that took effect, until the model gives all the answers. Serializable reads may take their place at any
time before they were answered. Watches are not looked at.
"""

from __future__ import annotations

from copy import deepcopy

from google.protobuf.message import Message
from history_checker import _same, _serializable
from history_records import History, Operation, Outcome
from store_model import Model


def explains(history: History) -> bool:
    """Whether some order explains all answers."""
    operations = [one for one in history.operations if one.outcome is not Outcome.FAILED]
    return _search(operations, Model())


def _start(operation: Operation) -> float:
    return 0.0 if _serializable(operation.request) else operation.invoked


def _search(left: list[Operation], model: Model) -> bool:
    if all(one.outcome is Outcome.UNKNOWN for one in left):
        return True
    horizon = min(one.returned for one in left)
    for place, operation in enumerate(left):
        if _start(operation) > horizon:
            continue
        after = deepcopy(model)
        answer = after.apply(operation.request)
        if operation.outcome is Outcome.OK:
            assert isinstance(operation.response, Message)
            if not _same(answer, operation.response):
                continue
        if _search(left[:place] + left[place + 1 :], after):
            return True
    return False
