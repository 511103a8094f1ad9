"""The model card: the page that a stranger reads before using a published model.

A Jinja2 template over a report. It runs in a sandbox, and every variable it gets is Markdown in
which what others wrote is plain text already, so neither a card nor a template has to be trusted.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoopress.provenance import shared_address
from zoopress.publishing.card_metadata import auto_class, base_model, library_name, metadata
from zoopress.publishing.card_template import render
from zoopress.publishing.elsewhere import elsewhere
from zoopress.publishing.installing import installing
from zoopress.publishing.licenses import (
    LEGAL_FILE,
    LICENSES,
    forbids_commercial_use,
    license_link,
    obligations,
)
from zoopress.publishing.originals import first_original_link, original_link
from zoopress.reports.coverage_words import coverage_words, short_words
from zoopress.reports.first_original import earlier_stages, first_original_text, source_name
from zoopress.reports.headline import times_smaller
from zoopress.reports.local_paths import without_local_paths
from zoopress.reports.markdown import (
    code,
    fence,
    link,
    one_line,
    table,
    text,
    web_address,
    yaml_block,
)
from zoopress.reports.quality_words import unlike_words
from zoopress.reports.report import comparison_rows, runtime_lines
from zoopress.reports.run_words import evaluation_data, settings_text, shown_recipe
from zoopress.results import Report
from zoopress.results.figures import primary_metric, task_metrics
from zoopress.results.speed import speeds
from zoopress.units import show_bytes, show_number

if TYPE_CHECKING:
    from zoopress.plugins import Plugins
    from zoopress.publishing.exports import Exports

FOLDER = "PATH/TO/THIS/FOLDER"
"""What stands for a repository's name on the page of a folder."""

_LABELS = {
    "sentence-similarity": ("their nearest neighbour", "its nearest neighbour among the samples")
}
_TRAINED = frozenset({"distillation", "transfer"})


def render_model_card(
    report: Report,
    repo_id: str | None = None,
    template: str | Path | None = None,
    permission: str | None = None,
    carried: Collection[str] = (),
    plugins: Plugins | None = None,
    install: str | None = None,
    exports: Exports | None = None,
) -> str:
    """Return a model's page, README.md.

    Args:
        report: what was measured.
        repo_id: where it is published. Without it, the page is that of a folder and holds only what
            every machine and every commit computes alike: no latency, no commit.
        template: a Jinja2 file that takes the place of the default, or extends it.
        permission: where the permission to publish can be read; printed.
        carried: names of the files that go along; those that hold a licence are named.
        plugins: know each technique's family; everything installed by default.
        install: what pip takes to install zoopress; None for where it came from on this machine.
        exports: what is published beside it for those who have no zoopress.

    Raises:
        InputError: if the template cannot be read, is wrong, or makes no page that the Hub reads;
            names file, line and remedy.
    """
    report, hidden = without_local_paths(report)
    context = _context(report, repo_id, permission, carried, _families(report, plugins), hidden)
    context["loading"] = [*installing(report, repo_id, install), *_loading(report, repo_id)]
    context["elsewhere"] = elsewhere(exports, repo_id) if exports and repo_id else {}
    page = render(context, None if template is None else Path(template))
    return page.rstrip("\n") + "\n"


# What the page says.


def _context(
    report: Report,
    repo_id: str | None,
    permission: str | None,
    carried: Collection[str],
    families: Sequence[str | None],
    hidden: Sequence[str],
) -> dict[str, Any]:
    """Return the template's variables; docs/model-card.md lists them."""
    card, last, fidelity = report.card, report.last, report.last.fidelity
    base, ratio = base_model(report), report.compression_ratio
    compared = source_name(report) if report.first_original else base or card["name"]
    name = compared.rpartition("/")[2]
    label, meaning = _LABELS.get(
        card.get("task", "fidelity"), ("the original's label", "the largest output")
    )
    labelled = fidelity.label_loyalty is not None
    return {
        "metadata": metadata(report, repo_id, families).to_yaml(),
        "title": text(f"{name}, compressed" + (f" {ratio:.1f}×" if ratio >= 1.05 else "")),
        "repo_id": text(repo_id or ""),
        "original": text(compared),
        "original_link": original_link(report),
        "first_original": text(first_original_text(report)),
        "description": text(card.get("description", "")),
        "recipe_name": text(report.recipe["name"]),
        "recipe_description": text(report.recipe.get("description", "")),
        "times_smaller": times_smaller(ratio),
        "size": show_bytes(last.size_bytes),
        "original_size": show_bytes(report.original_size_bytes),
        "unlike": text(unlike_words(report)),
        "short": text(short_words(report)),
        "reached": [
            text(words)
            for position, result in enumerate(report.stages, start=1)
            if (words := coverage_words(position, result))
        ],
        "cosine": f"{fidelity.cosine:.4f}",
        "worst": "" if (worst := fidelity.worst()).usual else text(worst),
        "task_metric": _task_metric(report),
        "intervals": any(m.difference_interval for m in task_metrics(report.evaluation, last)),
        "label_loyalty": f"{fidelity.label_loyalty:.4f}" if labelled else "",
        "label_share": f"{fidelity.label_loyalty:.1%}" if labelled else "",
        "label": label if labelled else "",
        "label_meaning": meaning if labelled else "",
        "samples": str(fidelity.samples),
        "data": text(evaluation_data(report)[1]),
        "metrics": report.metrics(),
        "loading_notes": _loading_notes(report),
        "results": table(
            ("", "original", "this model", ""),
            [[text(cell) for cell in row] for row in comparison_rows(report, latency=False)],
        ),
        "latency": _latency(report) if repo_id else "",
        "runtimes": "\n".join(runtime_lines(report)[2:]) if repo_id else "",
        "chain": _chain(report),
        "made_from": _made_from(report, published=bool(repo_id)),
        "recipe": yaml_block(shown_recipe(report.recipe)),
        "card": yaml_block(card),
        "card_notes": _card_notes(card, hidden),
        "limits": _limits(report, families, published=bool(repo_id)),
        "licence": _licence(report),
        "obligations": [text(sentence) for sentence in obligations(card.get("license"))],
        "carried": ", ".join(code(n) for n in sorted(carried) if LEGAL_FILE.fullmatch(n)),
        "permission": text(permission or ""),
        "cite": _cite(report),
    }


def _task_metric(report: Report) -> str:
    """Return what the task is judged by, of both models; empty without labels."""
    metric = primary_metric(report)
    if metric is None:
        return ""
    before, after = metric.show(metric.original), metric.show(metric.compressed)
    return f"{text(metric.title)} {before} → {after} ({metric.difference_text})"


def _loading(report: Report, repo_id: str | None) -> list[dict[str, str]]:
    """Return the ways to load the model, each a title and a block of code."""
    place = _quoted(repo_id or FOLDER)
    library, native = library_name(report), bool(report.loads_as.get("native"))
    factory = str(report.card.get("factory") or "")
    architecture = str(report.loads_as.get("architecture"))
    sentences = architecture == "sentence_encoder"
    lines = ["import zoopress", ""]
    if factory:
        function = factory.rpartition(":")[2]
        if not function.isidentifier() or keyword.iskeyword(function):
            function = "build"
        lines.append(f"model = zoopress.load({place}, factory={function})")
    else:
        lines.append(f"model = zoopress.load({place})")
    if sentences:
        lines.append('embeddings = model.encode(["A zoo keeps many animals."])')
    ways = [
        {"title": "", "code": fence("\n".join(lines), "python")},
    ]
    through = _through_library(report, library, place)
    if through:
        title = f"Or through {library}"
        title += ", without zoopress:" if native else ", once zoopress is installed:"
        ways.append({"title": title, "code": fence(through, "python")})
    return ways


def _through_library(report: Report, library: str, place: str) -> str | None:
    """Return code that loads the model by the original's library, if that can."""
    if library == "sentence-transformers":
        return (
            "from sentence_transformers import SentenceTransformer\n\n"
            f"model = SentenceTransformer({place})"
        )
    if library == "timm":
        prefix = "local-dir:" if place == _quoted(FOLDER) else "hf_hub:"
        return f'import timm\n\nmodel = timm.create_model("{prefix}{place[1:]}, pretrained=True)'
    name = auto_class(report)
    if library == "transformers" and name is not None:
        return f"from transformers import {name}\n\nmodel = {name}.from_pretrained({place})"
    return None


def _loading_notes(report: Report) -> list[str]:
    factory = report.card.get("factory")
    if not factory:
        return []
    arguments = report.card.get("factory_arguments")
    return [
        f"`factory` is the function {code(factory)}, which builds the network. Its code is not "
        "part of the model: it never runs unless you pass it."
        + (f" It was called with {code(_flow(arguments))}." if arguments else "")
    ]


def _latency(report: Report) -> str:
    """Return a sentence with every figure that depends on the machine, and the machine."""
    if not report.latency:
        return ""
    figures = "; ".join(
        f"{show_number(row['compressed_ms_p50'])} ms at batch {int(row['batch_size'])}, the "
        f"original {show_number(row['original_ms_p50'])} ms ({row['speed_up']:.2f}× as fast)"
        for row in report.latency
    )
    for speed in speeds(report):
        if speed.where:
            figures += (
                f"; at batch {speed.batch_size} {speed.speed_up:.2f}× as fast {text(speed.where)}"
            )
    machine, threads = report.machine, report.machine.get("threads", 1)
    return (
        f"{figures}. Medians, in eager PyTorch {text(machine.get('torch', ''))} unless a runtime "
        f"is named, on {threads} "
        f"thread{'' if threads == 1 else 's'} of {text(machine.get('processor') or 'a CPU')} "
        f"({text(machine.get('capability', ''))}); on another machine they differ."
    )


def _chain(report: Report) -> str:
    labelled = report.last.fidelity.label_loyalty is not None
    header = ["", "stage", "settings", "tensors", "cosine"]
    rows = []
    for position, stage in enumerate(report.stages, start=1):
        row = [
            str(position),
            code(stage.technique),
            text(settings_text(stage.config)) or "–",
            f"{show_bytes(stage.weight_bytes_before)} → {show_bytes(stage.weight_bytes)}",
            f"{stage.fidelity.cosine:.4f}",
        ]
        loyalty = stage.fidelity.label_loyalty
        rows.append([*row, *(["–" if loyalty is None else f"{loyalty:.4f}"] if labelled else [])])
    return table([*header, *(["label loyalty"] if labelled else [])], rows)


def _made_from(report: Report, published: bool) -> str:
    made = report.made_with
    versions = [
        f"{text(name)} {text(version)}"
        for name, version in made.items()
        if version and name not in ("commit", "repository", "changed")
    ]
    parts = [f"Made from {original_link(report)}"]
    if report.revision != "local":
        parts.append(f", revision {code(report.revision)}")
    parts.append(f", with {', '.join(versions)}." if versions else ".")
    if published and made.get("commit"):
        parts.append(f" It was run at commit {code(made['commit'])}")
        parts.append(f" of {_repository(made.get('repository')) or 'a repository'}")
        if made.get("changed"):
            parts.append(
                ", **with changes that were not committed**, so the commit alone may give another "
                "result"
            )
        parts.append(".")
    return "".join(parts)


def _repository(address: str | None) -> str | None:
    """Return a git remote without user and password; None for one that is a folder."""
    shown = shared_address(one_line(address or ""))
    if web_address(shown or ""):
        return link(re.sub(r"^https?://", "", shown or ""), shown)
    return code(shown) if shown else None


def _card_notes(card: Mapping[str, Any], hidden: Sequence[str]) -> list[str]:
    notes = []
    if hidden:
        names = ", ".join(code(name) for name in hidden)
        notes.append(f"{names}: a place outside the card's folder, shown by its last part alone.")
    source, data = str(card["source"]), card.get("data") or {}
    places = [source.removeprefix("path:")] if source.startswith("path:") else []
    places += [data[key] for key in ("text", "file") if data.get(key)]
    places += [str(p).rpartition(":")[0] for p in (card.get("factory"), data.get("inputs")) if p]
    files = sorted({place for place in places if place and place != "python-docstrings"})
    if files:
        notes.append(f"Not in this repository: {', '.join(code(name) for name in files)}.")
    return notes


def _limits(report: Report, families: Sequence[str | None], published: bool) -> list[str]:
    """Return what the model cannot do or nobody knows; each only where it is so."""
    card, last, limits = report.card, report.last, []
    if None not in families and not _TRAINED & set(families):
        limits.append("Nothing was trained afterwards to win back what the stages lost.")
    labelled = bool(task_metrics(report.evaluation, last))
    limits.append(
        f"{'Quality' if labelled else 'Fidelity'} was measured on {last.fidelity.samples} samples ("
        f"{text(evaluation_data(report)[1])}); other inputs may fare worse."
        + ("" if labelled else " No accuracy on labelled data was measured.")
    )
    if (card.get("data") or {}).get("random"):
        limits.append("Fidelity on random inputs says little about fidelity on real ones.")
    if "weight_quantization" in _techniques(report):
        limits.append(
            "Only weights are quantized; activations stay floating point. That makes files small, "
            "and computing faster only where there is a kernel for such weights."
        )
    if last.pruned:
        limits.append(
            f"{last.pruned / last.parameters:.1%} of its parameters are zeros that stay in place: "
            "they save bytes, and no time, since no kernel skips them."
        )
    if published:
        dense = sum(n for kernel, n in report.kernels.items() if kernel.startswith("dense"))
        if dense:
            limits.append(
                f"{dense} of its {sum(report.kernels.values())} quantized weights have no kernel "
                "where it was measured: loaded, they take as much memory as the original's."
            )
        fast = {s.batch_size for s in speeds(report) if s.where and s.speed_up >= 0.95}
        slow = [
            row
            for row in report.latency
            if row["speed_up"] < 0.95 and row["batch_size"] not in fast
        ]
        limits += [
            f"Slower than the original at batch {int(row['batch_size'])}, where it was measured."
            for row in slow
        ]
    if card.get("factory"):
        limits.append("It cannot be loaded without the code of its network, which is not here.")
    if forbids_commercial_use(card.get("license")):
        limits.append("Its licence does not allow commercial use.")
    return limits


def _licence(report: Report) -> str:
    card = report.card
    identifier = card.get("license")
    if not identifier or identifier == "unknown":
        return "No licence is known."
    name = card.get("license_name") or LICENSES.get(identifier, identifier)
    address = card.get("license_link") or license_link(identifier) or ""
    shown = link(name, address)
    if identifier != "other":
        shown += f" ({code(identifier)})"
    if address and not web_address(address):
        shown += f", see {code(address)}"
    return (
        f"This is a changed version of {first_original_link(report)}, under the same "
        f"licence: {shown}."
    )


def _cite(report: Report) -> str:
    tags = [str(tag) for tag in report.card.get("tags") or ()]
    papers = [m[1] for m in (re.fullmatch(r"arxiv:(\d{4}\.\d{4,5})", tag) for tag in tags) if m]
    if not papers:
        return ""
    links = ", ".join(link(f"arXiv:{p}", f"https://arxiv.org/abs/{p}") for p in papers)
    return f"Cite the authors of the original: {links}."


def _families(report: Report, plugins: Plugins | None) -> list[str | None]:
    """Return the family of each technique since the first original, None of one not installed."""
    from zoopress.plugins import load_plugins

    techniques = (plugins or load_plugins()).techniques
    found = [techniques.get(name) for name in _techniques(report)]
    return [None if technique is None else technique.family for technique in found]


def _techniques(report: Report) -> list[str]:
    """Return the techniques of all stages since the first original."""
    return [*earlier_stages(report), *(stage.technique for stage in report.stages)]


def _quoted(value: str) -> str:
    """Return a string as Python source, in double quotes."""
    return json.dumps(one_line(value), ensure_ascii=False)


def _flow(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
