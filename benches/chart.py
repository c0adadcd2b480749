"""Draws what the benchmarks recorded as one chart: how long each thing takes, the limit of the same run being one.

    MLLP_BENCH_RECORD=record.tsv cargo bench --features sqlite
    python3 benches/chart.py record.tsv > benches/chart.svg
"""

import datetime
import os
import platform
import sys
from html import escape

WIDTH, LEFT, ROW, SCALE = 860, 330, 17, 200
# What takes longer than so many times the limit is drawn so long, and its figure says how long it is.
MOST = 2.2
OURS, THEIRS = ["#2b6cb0", "#63a4d8"], "#c9802b"


def processor():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def read(path):
    """The charts in order, each with its rows, each with what was measured; the last figure of each counts."""
    charts = {}
    with open(path, encoding="utf-8") as record:
        for line in record:
            chart, row, what, ratio = line.rstrip("\n").split("\t")
            charts.setdefault(chart, {}).setdefault(row, {})[what] = float(ratio)
    return charts


def draw(charts):
    y = 44
    body = []

    def text(x, content, **attributes):
        shown = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
        body.append(f'<text x="{x}" y="{y}"{shown}>{escape(content)}</text>')

    for chart, rows in charts.items():
        y += 22
        text(16, chart, font_weight="bold")
        colours = {}
        for row, figures in rows.items():
            for what, ratio in figures.items():
                y += ROW
                ours = OURS[len(colours) % len(OURS)]
                colour = colours.setdefault(what, THEIRS if what.startswith("hl7-mllp-codec") else ours)
                text(LEFT - 8, f"{row}, {what}", text_anchor="end")
                length = min(ratio, MOST) * SCALE
                body.append(f'<rect x="{LEFT}" y="{y - 11}" width="{length:.1f}" height="13" fill="{colour}"/>')
                text(LEFT + length + 6, f"{ratio:.2f}", stroke="#fff", stroke_width=4, paint_order="stroke")
        y += 6
    limit = LEFT + SCALE
    date = datetime.date.today().isoformat()
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 16}" '
        f'font-family="sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n'
        f'<text x="16" y="22" font-size="15">Time, the limit of the same run being 1 (shorter is better)</text>\n'
        f'<text x="16" y="40">{escape(processor())}, {platform.system()}, {date}</text>\n'
        f'<line x1="{limit}" x2="{limit}" y1="50" y2="{y}" stroke="#888" stroke-dasharray="3 3"/>\n' + "\n".join(body) + "\n</svg>"
    )


draw(read(sys.argv[1]))
