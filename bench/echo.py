"""The least that an order costs in FastAPI: validate the body with pydantic, answer it, store nothing.

It is the idiomatic endpoint: a model in, the same model out, everything else as FastAPI does it.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from bench import serving

Name = Annotated[str, Field(min_length=1, max_length=120)]
Note = Annotated[str, Field(max_length=280)]


class Line(BaseModel):
    """A line of an order, with the limits that Bistro92 has, too."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Name
    quantity: Annotated[int, Field(ge=1, le=999)]


class Order(BaseModel):
    """An order."""

    model_config = ConfigDict(extra="forbid", strict=True)
    table: Annotated[str, Field(min_length=1, max_length=64)]
    items: Annotated[list[Line], Field(min_length=1, max_length=100)]


app = FastAPI()


@app.post("/api/order", status_code=201)
async def create_order(order: Order) -> Order:
    """Answer what was sent."""
    return order


if __name__ == "__main__":
    serving.serve(app)
