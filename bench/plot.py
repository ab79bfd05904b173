"""The picture of a run: each server beside the baseline, for every shape and case of fan-out, in each mode."""

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from cases import CASES, MODES, Mode
from results import Results

mpl.use("Agg")  # draw to files, wherever there is no screen

SERVERS_MAX = 12
GROUPS_SHOWN = {
    "shapes": "by connections / payload bytes",
    "fan-out": "by members x messages per round",
}
SUBJECT = {
    "throughput": "messages per second",
    "capacity": "messages per second of the server's CPU time",
}


def save(results: Results, path: Path) -> bool:
    """Writes a PNG. False if the run has nothing that is shown."""
    measurements = results.measurements
    panels: list[tuple[Mode, str, list[str]]] = []
    for group in GROUPS_SHOWN:
        for mode in MODES:
            cases = [name for name in measurements.cases(mode) if CASES[name].group == group]
            if cases:
                panels.append((mode, group, cases))
    servers = measurements.servers()[:SERVERS_MAX]
    if not panels or not servers:
        return False

    figure, all_axes = plt.subplots(len(panels), 1, figsize=(12, 4.5 * len(panels)), squeeze=False)
    for (mode, group, cases), axes in zip(panels, all_axes[:, 0], strict=True):
        for index, server in enumerate(servers):
            found = [
                (position, ratio)
                for position, shape in enumerate(cases)
                if (ratio := measurements.ratio(server, results.baseline, shape, mode))
            ]
            width = 0.85 / len(servers)
            axes.bar(
                [position + (index - (len(servers) - 1) / 2) * width for position, _ in found],
                [ratio.median for _, ratio in found],
                width,
                yerr=(
                    [ratio.median - ratio.low for _, ratio in found],
                    [ratio.high - ratio.median for _, ratio in found],
                ),
                label=server,
                color=plt.get_cmap("tab20")(index),
                error_kw={"elinewidth": 0.8},
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(cases)), cases)
        if group == "fan-out":
            axes.set_yscale("log")  # servers differ by much more here
        axes.set_ylabel(f"{results.baseline} = 1")
        axes.set_title(f"{mode}: {SUBJECT[mode]}, {GROUPS_SHOWN[group]}")
    figure.legend(*all_axes[0, 0].get_legend_handles_labels(), ncols=6, fontsize="small", loc="upper center")
    machine = results.machine
    footer = (
        f"Linux {machine.get('kernel')}, {machine.get('cpu')}, Python {machine.get('python')}, {machine.get('date')}"
    )
    figure.text(0.01, 0.005, footer, fontsize="x-small", color="grey")
    figure.tight_layout(rect=(0, 0.015, 1, 0.95))
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
