"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1d2329; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #d0d7de; padding: .8rem;
      border-radius: 6px; line-height: 1.7 }
.learned { background: #b9efc4 } .learned:nth-child(even) { background: #93e2a4 }
.context:nth-child(even) { background: #f2f4f6 }
.pad { background: #d0d7de; color: #57606a; padding: 0 .4em }
.boundary { display: block; border-top: 2px dashed #a371f7; margin: .4rem 0 }
.error { color: #b42318 } .warning { color: #8a6100 }
td { padding: .1rem 1rem .1rem 0; vertical-align: top }
meter { width: 16rem }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117 } pre { border-color: #30363d }
  .learned { background: #1a5c2e } .learned:nth-child(even) { background: #237a3d }
  .context:nth-child(even) { background: #1c2128 } .pad { background: #30363d; color: #9ea7b3 }
  .error { color: #ff7b72 } .warning { color: #e3b341 }
}
"""


def as_page(data: dict[str, Any], title: str) -> str:
    """A page of what `as_data` gives.

    Args:
        data: The sets by name.
        title: What stands above them.
    """
    body = "".join(_set(name, each) for name, each in data.items())
    legend = '<span class="learned">learned</span> <span class="context">context</span> '
    legend += '<span class="pad">pad</span>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1><p>{legend}</p>{body}</body></html>\n"
    )


def _set(name: str, data: dict[str, Any]) -> str:
    amount = "a stream" if data["samples"] is None else f"{data['samples']:,}"
    facts = {
        "samples": f"{amount}, of which {data['documents']:,} were examined",
        "learned": _learned(data),
        **{f"- {escape(source)}": _learned(part) for source, part in data["sources"].items()},
        "padding": f"{data['pads']:,} tokens",
        "end token": f"learned behind {data['ends'][0]:,} of {data['ends'][1]:,} answers",
    }
    rows = "".join(f"<tr><td>{key}</td><td>{value}</td></tr>" for key, value in facts.items())
    notes = "".join(f"<p>{escape(note)}</p>" for note in data["notes"])
    return (
        f"<h2>{escape(name)}</h2><table>{rows}</table>{notes}{_faults(data)}"
        f"<h3>Lengths</h3><table>{_lengths(data['lengths'])}</table>"
        f"<h3>Rows</h3>{''.join(map(_row, data['shown']))}"
    )


def _learned(data: dict[str, Any]) -> str:
    return f"{data['supervised']:,} of {data['tokens']:,} tokens ({data['supervised_share']:.1%})"


def _faults(data: dict[str, Any]) -> str:
    if not data["faults"]:
        return "<p>No fault found.</p>"
    items = "".join(
        f'<li class="{fault["severity"]}"><b>{fault["name"]}</b>: {fault["count"]:,} '
        f"{escape(fault['of'])}. {escape(fault['message'])}</li>"
        for fault in data["faults"]
    )
    return f"<h3>Faults</h3><ul>{items}</ul>"


def _lengths(lengths: dict[str, int]) -> str:
    most = max(lengths.values(), default=1)
    return "".join(
        f'<tr><td>{escape(name)} tokens</td><td><meter value="{count}" max="{most}"></meter> '
        f"{count:,}</td></tr>"
        for name, count in lengths.items()
    )


def _row(pieces: Sequence[dict[str, Any]]) -> str:
    spans = "".join(
        f'<span class="{piece["role"]}" title="{" ".join(map(str, piece["ids"]))}">'
        f"{escape(piece['text'])}</span>"
        for piece in pieces
    )
    return f"<pre>{spans}</pre>"
