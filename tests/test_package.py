"""The distribution is whole: one install gives the Python packages and the native engine."""

import raftkv_node._engine as engine
import raftkv_operator
import raftkv_playground


def test_native_engine_is_built_for_this_version() -> None:
    from importlib.metadata import version

    assert engine.__version__ == version("raftkv")


def test_all_three_packages_import() -> None:
    assert raftkv_operator.__name__ == "raftkv_operator"
    assert raftkv_playground.__name__ == "raftkv_playground"
