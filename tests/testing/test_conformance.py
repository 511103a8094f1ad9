"""The conformance suite catches plugins that break the rules."""

from __future__ import annotations

import textwrap

import pytest

from plugin_distributions import Install
from zoopress.plugins import load_plugins
from zoopress.testing import check_technique

TECHNIQUE = """
from zoopress.errors import StageError
from zoopress.plugins import hookimpl
from zoopress.techniques import Config, Effects, Outcome, Technique


class Halves(Technique[Config]):
    '''Halve all matrices, or something else.'''

    name = "halves"
    family = "pruning"
    config_type = Config
{attributes}

    def effects(self):
        return Effects()

    def apply(self, model, context):
        weights = list(model.weights(("linear",)))
        if not weights:
            raise StageError("There is no matrix to halve.")
        factor = 0.5
{body}
        for weight in weights:
            model.set_values(weight, weight.parameter.detach() * factor)
        {end}


@hookimpl
def zoopress_techniques():
    return [Halves]
"""
END = "return Outcome(touched=[w.name for w in weights], shrinks=False)"

pytestmark = pytest.mark.usefixtures("brief_latency")


def check(
    install: Install, body: str = "", attributes: str = "", end: str = END, more: str = ""
) -> None:
    body, attributes = textwrap.indent(body, " " * 8), textwrap.indent(attributes, " " * 4)
    install("halving", "halves", TECHNIQUE.format(body=body, attributes=attributes, end=end) + more)
    plugins = load_plugins()
    technique = plugins.technique("halves")
    check_technique(technique(technique.config_type()), plugins)


def test_what_keeps_the_rules_passes(install: Install) -> None:
    check(install)


@pytest.mark.parametrize(
    ("body", "attributes", "problem"),
    [
        ("factor = 1 / (1 + len(context.batches()))", "", r"not declare: \['calibration'\]"),
        (
            "context.teacher(None)",
            "",
            r"not declare: \['teacher'\]",
        ),
        ("", "needs = frozenset({'patience'})", r"needs names \['patience'\]; there are 'calib"),
    ],
)
def test_undeclared_and_unknown_needs_are_named(
    install: Install, body: str, attributes: str, problem: str
) -> None:
    with pytest.raises(AssertionError, match=problem):
        check(install, body, attributes)


def test_what_follows_from_the_order_of_a_set_is_found(install: Install) -> None:
    with pytest.raises(AssertionError, match="another PYTHONHASHSEED, it makes other files"):
        check(install, "factor = 0.25 + hash('name') % 100_003 / 200_006")


def test_a_registered_layer_that_does_not_exist_is_named(install: Install) -> None:
    more = """
@hookimpl
def zoopress_layers():
    return {"halving_layer": "halving_module:Missing"}
"""
    with pytest.raises(AssertionError, match=r"layer 'halving_layer'.*Missing"):
        check(install, more=more)


@pytest.mark.parametrize(
    ("end", "problem"),
    [
        ("return None", "must return zoopress.Outcome; it returned None"),
        ("return Outcome(touched=None)", "a list of str; it returned None"),
        ("return Outcome(touched='all')", "a list of str; it returned str 'all'"),
        (
            "return Outcome(touched=[w.name for w in weights], claims=None)",
            "in a list; it returned None",
        ),
        ("return Outcome(touched=[w.name for w in weights], notes=None)", "a dict as 'notes'"),
    ],
)
def test_answers_of_other_types_are_named(install: Install, end: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        check(install, end=end)
