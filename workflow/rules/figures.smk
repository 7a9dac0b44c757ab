include: "figure_files.smk"


rule plot:
    """Draws a figure of lpvit/report/figures: for papers, and interactive for the page."""
    input:
        unpack(drawn_from),
    output:
        svg=report(
            f"{RESULTS}/{{place}}/{{figure}}.svg",
            caption="../report/figure.rst",
            category=lambda wildcards: FIGURES[wildcards.figure].category,
            subcategory=lambda wildcards: sharing(wildcards) if "dataset" in spelled(wildcards) else "all experiments",
            labels=lambda wildcards: {"figure": FIGURES[wildcards.figure].title},
        ),
        png=f"{RESULTS}/{{place}}/{{figure}}.png",
        json=f"{RESULTS}/{{place}}/{{figure}}.json",
    params:
        caption=lambda wildcards: caption_of(wildcards.figure, spelled(wildcards)),
        facts=facts_of,
        sources=sources("plot.py"),
    log:
        f"{RESULTS}/{{place}}/{{figure}}.svg.log",
    wildcard_constraints:
        figure=one_of(FIGURES),
    conda:
        ENVIRONMENT
    script:
        "../scripts/plot.py"
