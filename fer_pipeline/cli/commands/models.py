from typing import Annotated

from pydantic import BaseModel

from fer_pipeline.cli.commands import FLAT
from fer_pipeline.local import models
from fer_pipeline.local.models import AliasConfig, CardConfig, ListConfig, PullConfig, PushConfig


def list_models(config: Annotated[ListConfig, FLAT] = ListConfig()) -> BaseModel:
    return models.list_models(config)


def push(config: Annotated[PushConfig, FLAT]) -> BaseModel:
    return models.push(config)


def alias(config: Annotated[AliasConfig, FLAT]) -> BaseModel:
    return models.alias(config)


def pull(config: Annotated[PullConfig, FLAT]) -> BaseModel:
    return models.pull(config)


def card(config: Annotated[CardConfig, FLAT]) -> BaseModel:
    return models.card(config)
