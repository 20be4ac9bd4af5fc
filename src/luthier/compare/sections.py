"""The parts of a report that need no script: HTML from results, with all that data says escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luthier.compare.budget import in_bytes
from luthier.compare.comparison import ranked
from luthier.compare.table import COSTS, cost, count, show
from luthier.compare.view import floor
from luthier.data.html import text
from luthier.data.task import LOWER_IS_BETTER

SHORT = {
    **dict(zip(COSTS, ("trained", "memory", "training", "ms a row", "file"))),
    "forgetting": "forgetting",
}
"""Names of columns."""
ABOUT = {
    "majority": "Says for every row how often each answer occurs in training: what any method must beat.",
    "tfidf": "A linear model on words and word pairs, without the pretrained model; where texts are to be "
    "written, the nearest training row; where they are to be found, the one with the likest words.",
    "pixels": "A linear model on the values as they are, without the pretrained model.",
    "probe": "A linear model on the frozen model's features: what is there before anything is adapted.",
    "frozen": "The frozen model's own vectors of queries and texts: what is there before anything is adapted.",
}


def signed(value: float) -> str:
    """A difference with its sign, a real minus."""
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def metric_name(results: Mapping[str, Any]) -> str:
    return str(results["metric"]).replace("_", " ")


def asked(results: Mapping[str, Any]) -> str:
    """What was compared, on what, under which budget, in words."""
    kinds = [a["kind"] for a in results["arms"]]
    rows, task, data = results["data"]["rows"], results["task"], text(results["data"]["name"], 80)
    base = f"<b>{text(results['model'], 80)}</b> ({count(results['base_parameters'])} parameters)"
    said = (
        f"{plural(kinds.count('method'), 'way')} of adapting {base} "
        f"and {plural(kinds.count('baseline'), 'baseline')}, on <b>{data}</b>: "
        f"{rows.get('train', 0):,} rows to train on, {rows.get('test', 0):,} to test on"
    )
    if task["labels"]:
        said += f", {len(task['labels'])} {'labels' if task['kind'] == 'multilabel' else 'classes'}"
    grid = results["grid"]
    rates = f"the best of {len(grid)} learning rates on validation" if grid else "its default learning rate"
    limits = ", ".join(limits_of(results["budget"]))
    return f"{said}. Each had {limits}; {plural(len(results['seeds']), 'seed')}; {rates}."


def plural(number: float, noun: str) -> str:
    return f"{number:,g} {noun}" if number == 1 else f"{number:,g} {noun}s"


def limits_of(budget: Mapping[str, Any]) -> list[str]:
    """A budget in words."""
    said = {
        "epochs": lambda v: plural(v, "epoch"),
        "params_share": lambda v: f"at most {v * 100:g}% of the parameters trained",
        "params": lambda v: f"at most {plural(v, 'parameter')} trained",
        "minutes": lambda v: f"{plural(v, 'minute')} of training, trials included",
        "steps": lambda v: f"at most {plural(v, 'step')}",
        "memory": lambda v: f"at most {in_bytes(v)} of memory",
    }
    return [say(budget[k]) for k, say in said.items() if k in budget]


def tiles(results: Mapping[str, Any]) -> str:
    """Three or four figures that answer the first questions."""
    order = ranked(dict(results))
    if not order:
        return ""
    s = order[0]["summary"]
    range_ = f"{order[0]['label']}, 95% from {s['low']:.3f} to {s['high']:.3f}"
    out = [(f"Best {metric_name(results)}", f"{s['metric']:.3f}", range_)]
    first = next((a for a in order if a["kind"] == "method"), None)
    if first is not None and order[0]["kind"] == "baseline":
        d = first["summary"]["delta_vs_best"]
        said = f"{first['label']}, {signed(d['mean'])} (95% from {signed(d['low'])} to {signed(d['high'])})"
        out.append(("Best method", f"{first['summary']['metric']:.3f}", said))
    if (gain := s["delta_vs_reference"]) is not None:
        tail = "" if gain["clear"] else ": not beyond chance"
        said = f"95% from {signed(gain['low'])} to {signed(gain['high'])}{tail}"
        out.append(("Over the linear probe", signed(gain["mean"]), said))
    out.append(("Best in resamples", f"{s['chance_best']:.0%}", "of the resampled tests have this winner"))
    near = [
        a for a in order if a["kind"] == "method" and not (a["summary"]["delta_vs_best"] or {}).get("clear")
    ]
    sized = [(cost(a, "parameters"), a) for a in near]
    sizes = [(size, a["label"], a is order[0]) for size, a in sized if size is not None]
    if sizes:
        size, label, best = min(sizes, key=lambda x: x[0])
        said = "the best itself" if best else "this test cannot tell it from the best"
        out.append(("Smallest contender", count(size), f"parameters: {label}, {said}"))
    return "".join(
        f'<div class="tile"><dt>{text(a)}</dt><dd>{text(b)}</dd><dd class="sub">{text(c, 90)}</dd></div>'
        for a, b, c in out
    )


def board(results: Mapping[str, Any]) -> str:
    """The leaderboard. Each cell carries its sorting value, and its column's name for narrow screens."""
    order = ranked(dict(results))
    span = shared_axis(order, results["metric"])
    forgetting = any(r.get("forgetting") is not None for a in order for r in a["runs"])
    costs = (*COSTS, "forgetting") if forgetting else COSTS
    out, colour = [], 0
    for rank, arm in enumerate(order, 1):
        s, d = arm["summary"], arm["summary"]["delta_vs_best"]
        mine = "base" if arm["kind"] == "baseline" else f"c{colour % 8}"
        colour += arm["kind"] == "method"
        figure = f"<b>{s['metric']:.3f}</b> <small>{s['low']:.3f} to {s['high']:.3f}</small>"
        kind = '<span class="kind">baseline</span>' if arm["kind"] == "baseline" else ""
        cells = [
            f'<th scope="row" data-v="{rank}"><span class="dot {mine}" aria-hidden="true"></span>'
            f"{text(arm['label'], 60)}{kind}</th>",
            cell(s["metric"], metric_name(results), figure, "main"),
            f'<td class="wide {mine}" aria-hidden="true">{whisker(s, span)}</td>',
            cell(d["mean"] if d else 0, "Δ to best", delta(d), "delta"),
        ]
        for name in costs:
            value = cost(arm, name)
            cells.append(cell(value, SHORT[name], text(show(name, value))))
        out.append(f'<tr class="{arm["kind"]}{"" if d else " first"}">{"".join(cells)}</tr>')
    drawn = '<th class="wide" scope="col"><span class="sr">interval, drawn</span></th>'
    names = ["arm", metric_name(results), None, "Δ to best", *(SHORT[c] for c in costs)]
    heads = "".join(drawn if n is None else f'<th scope="col">{text(n)}</th>' for n in names)
    return f"<thead><tr>{heads}</tr></thead><tbody>{''.join(out)}</tbody>"


def cell(value: float | None, column: str, inner: str, kind: str = "") -> str:
    return (
        f'<td data-v="{"" if value is None else value}" data-c="{text(column)}" class="{kind}">{inner}</td>'
    )


def delta(d: Mapping[str, Any] | None) -> str:
    """A paired difference to the best arm."""
    if d is None:
        return '<b class="won">best</b>'
    tie = '<span class="tie" title="The paired interval holds zero">not told apart</span>'
    range_ = f"<small>{signed(d['low'])} to {signed(d['high'])}</small>"
    return f"{signed(d['mean'])} {range_}{'' if d['clear'] else tie}"


def shared_axis(order: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float]:
    """What the drawn intervals span; weak baselines lie off it."""
    sign, edge = -1 if metric in LOWER_IS_BETTER else 1, floor(order, metric)
    near = [a["summary"] for a in order if edge is None or sign * a["summary"]["metric"] >= sign * edge]
    ends = [s[k] for s in near for k in ("low", "high")]
    return min(ends, default=0.0), max(ends, default=1.0)


def whisker(s: Mapping[str, Any], span: tuple[float, float]) -> str:
    """An interval drawn on an axis that all arms share; one that lies off it becomes an arrow."""
    low, high = span
    if not low <= s["metric"] <= high:
        arrow = "M12 2 5 7l7 5z" if s["metric"] < low else "M128 2l7 5-7 5z"
        return f'<svg width="140" height="14"><path d="{arrow}" fill="currentColor"/></svg>'
    a, at, b = (6 + 128 * (s[k] - low) / ((high - low) or 1) for k in ("low", "metric", "high"))
    a, b = max(a, 2), min(b, 138)
    return (
        f'<svg width="140" height="14"><path d="M{a:.1f} 7H{b:.1f}M{a:.1f} 3v8M{b:.1f} 3v8" '
        'stroke="currentColor" stroke-width="1.5" fill="none"/>'
        f'<circle cx="{at:.1f}" cy="7" r="4" fill="currentColor"/></svg>'
    )


def failures(results: Mapping[str, Any]) -> str:
    """Arms that failed, loudly, and those that have not run."""
    out = [
        f"<li><b>{text(a['label'], 60)}</b> failed: {text(a['error'], 400)}</li>"
        for a in results["arms"]
        if a["status"] == "failed"
    ]
    out += [
        f"<li><b>{text(a['label'], 60)}</b> has not finished.</li>"
        for a in results["arms"]
        if a["status"] == "pending"
    ]
    return (
        f'<div class="alert" role="note"><h3>Not on the board</h3><ul>{"".join(out)}</ul></div>'
        if out
        else ""
    )


def intervals(results: Mapping[str, Any]) -> str:
    return (
        "test rows and training seeds"
        if len(results["seeds"]) > 1
        else "test rows only: with one seed, the luck of a training run is not in them"
    )


def card(arm: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """What an arm was: its options, its learning rate and the trials that chose it."""
    method = arm["method"] or {}
    options = [
        (k.replace("_", " "), option(v))
        for k, v in method.items()
        if k != "is" and v not in ("", {"is": "free"})
    ]
    if arm["kind"] == "method":
        if arm["rate"]:
            options.append(("learning rate", f"{arm['rate']:.3g}"))
        if heads := [r["parameters_head"] for r in arm["runs"] if r.get("parameters_head")]:
            options.append(("head", f"{heads[0]:,} parameters, not in the budget"))
    baseline = arm["kind"] == "baseline"
    about = f"<p>{text(ABOUT[arm['name']])}</p>" if baseline and arm["name"] in ABOUT else ""
    marks = {
        "failed": '<span class="kind bad">failed</span>',
        "pending": '<span class="kind">not finished</span>',
    }
    mark = ('<span class="kind">baseline</span>' if baseline else "") + marks.get(arm["status"], "")
    table = trials(arm["trials"], method.get("C"), results["metric"])
    head = f"<h3>{text(arm['label'], 60)}{mark}</h3>"
    return f'<article class="card">{head}{about}{facts(options)}{table}</article>'


def trials(tried: Iterable[Mapping[str, Any]], strength: float | None, metric: str) -> str:
    """What was tried on validation, the chosen one marked; folded."""
    lines = []
    for t in tried:
        if not (t.get("validation") or t.get("error")):
            continue
        chosen = t.get("chosen") or (strength is not None and t.get("strength") == strength)
        name, value = ("rate", t["rate"]) if "rate" in t else ("C", t["strength"])
        found = t.get("validation") or {}
        figure = found.get(metric, found.get("loss"))
        said = text(t["error"], 90) if t.get("error") else "–" if figure is None else f"{figure:.3f}"
        lines.append(
            f'<tr class="{"chosen" if chosen else ""}"><td>{name} {value:.3g}</td><td>{said}</td></tr>'
        )
    if not lines:
        return ""
    inner = f'<table class="trials">{"".join(lines)}</table>'
    return f"<details><summary>{len(lines)} trials on validation</summary>{inner}</details>"


def option(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(
            f"{k}={option(v)}" for k, v in value.items() if k != "is" and v not in ("", [], None)
        )
        return f"{value.get('is')}{f' ({inner})' if inner else ''}"
    return (
        ", ".join(map(option, value)) if isinstance(value, list) else "default" if value == "" else str(value)
    )


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    inner = "".join(f"<div><dt>{text(k, 60)}</dt><dd>{text(v, 300)}</dd></div>" for k, v in pairs)
    return f'<dl class="facts">{inner}</dl>' if inner else ""


def items(lines: Iterable[Any]) -> str:
    return "".join(f"<li>{text(line, 400)}</li>" for line in lines)


def data_facts(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    data, task = results["data"], results["task"]
    return [
        ("data", data["name"]),
        *((f"{part} rows", f"{rows:,}") for part, rows in data["rows"].items()),
        ("task", f"{task['kind']}, {task['modality']}"),
        ("headline metric", metric_name(results)),
        ("digest", str(data["digest"])[:16]),
    ]


def machine_facts(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    shown = {k: in_bytes(v) if k == "memory_bytes" and v else v for k, v in results["machine"].items()}
    return [
        (k.replace("_bytes", "").replace("_", " "), v) for k, v in {**shown, **results["versions"]}.items()
    ]


def taste(results: Mapping[str, Any]) -> str:
    """Why a comparison is only a taste."""
    if not results["labelled"]:
        return ""
    why = []
    if len(results["seeds"]) < 3:
        why.append("fewer than three seeds, so the luck of a training run is hardly measured")
    if not results["grid"]:
        why.append(
            "every method at its default learning rate, which favours methods whose default happens to fit"
        )
    return f"<p><b>This is a {text(results['labelled'])}</b>: {text('; '.join(why))}.</p>"
