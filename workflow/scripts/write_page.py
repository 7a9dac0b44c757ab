"""All results in, the page of the report out."""

from datetime import datetime

import yaml

import lpvit.stages.preloaded  # noqa: F401 - continues in a process that has imported torch
from lpvit.report.artifacts import read_chance, with_frames
from lpvit.report.environment import commit, durations, machine, versions
from lpvit.report.page import Report, render
from lpvit.report.tables.paper import paper_of
from lpvit.report.tables.speed import read_speed
from lpvit.report.tables.summary import read_summary
from lpvit.stages.stage import stage
from lpvit.store.artifacts import write_text

with stage(snakemake):
    params = snakemake.params
    report = Report(
        name=params.name,
        summary=read_summary(snakemake.input.summary),
        speed=read_speed(params.speed),
        series=params.series,
        experiments=[with_frames(entry) for entry in params.experiments],
        chance=read_chance(params.images),
        command=params.command,
        tradeoff=snakemake.input.tradeoff,
        paper=paper_of(*snakemake.input.paper, params.proxy) if snakemake.input.paper else None,
        facts={"versions": versions(), "commit": {"": commit()}, "machine of this page": machine()},
        durations=durations(params.timed),
        config=yaml.safe_dump(snakemake.config, sort_keys=False, width=120),
        written=f"{datetime.now():%d %B %Y, %H:%M}",
    )
    write_text(render(report), params.page)
    write_text(render(report, interactive=False), params.glance)
