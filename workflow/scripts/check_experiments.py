"""The whole config in, one line per experiment out: what it will prune, and whether it can work at all."""

import pandas as pd
import torch

from lpvit.blocks import BlockGrid
from lpvit.config import Budget, Config, Experiment
from lpvit.cost import least_macs
from lpvit.errors import LpvitError
from lpvit.models import create_model, load_weights, matrix_layers, prunable_layers, read_checkpoint
from lpvit.schemas import IMAGES, PLAN, read_parquet, write_parquet
from lpvit.stage import stage


def check(name: str, experiment: Experiment, settings: Config) -> dict:
    images = read_parquet(settings.results / experiment.dataset / IMAGES.file, IMAGES)
