"""What `--check` and `--dry-run` print: wrong lines, and the estimate of tokens, cost and time."""

import json
from collections.abc import Callable, Mapping

import attrs
import click

from together_async.batch.plan import Estimate, Plan
from together_async.cli.batch.figures import duration, money
from together_async.cli.batch.options import LimitOptions, OutputOptions
from together_async.cli.terminal import EXIT_DONE
from together_async.pricing import Price

EXIT_USAGE = 2
MOST_LISTED = 20
"""Wrong lines that are listed; of the others only the number is printed."""


def show_plan(
    plan: Plan,
    prices: Mapping[str, Price] | None,
    limit_options: LimitOptions,
    output_options: OutputOptions,
    name: str,
) -> int:
    """Print a plan. Returns the exit code.

    Args:
        plan: What there is to do.
        prices: By model; None if cost is not estimated.
        limit_options: Limits that the person sets.
        output_options: Whether to print JSON, and whether to be quiet.
        name: The input's name.
    """
    print_plan: Callable[[Plan, Mapping[str, Price] | None, LimitOptions, str], None] = (
        _plan_as_json if output_options.as_json else _plan_as_text
    )
    if not output_options.quiet or plan.wrong:
        print_plan(plan, prices, limit_options, name)
    return EXIT_USAGE if plan.wrong else EXIT_DONE


def _plan_as_json(plan: Plan, prices: Mapping[str, Price] | None, limit_options: LimitOptions, name: str) -> None:
    click.echo(
        json.dumps(
            {
                "event": "plan",
                "input": name,
                "total": plan.total,
                "to_do": plan.to_do,
                "done": plan.done,
                "failed": plan.failed,
                "wrong": plan.wrong,
                "errors": [{"line": error.line, "message": error.text} for error in plan.errors],
                "models": {
                    model: {**attrs.asdict(estimate), "cost": _cost(estimate, (prices or {}).get(model))}
                    for model, estimate in plan.by_model.items()
                },
                "least_minutes": _least_minutes(plan, limit_options),
            }
        )
    )


def _plan_as_text(plan: Plan, prices: Mapping[str, Price] | None, limit_options: LimitOptions, name: str) -> None:
    for error in plan.errors[:MOST_LISTED]:
        click.echo(f"{name} {error}", err=True)
    if plan.wrong > MOST_LISTED:
        click.echo(f"... and {plan.wrong - MOST_LISTED} more", err=True)
    click.echo(
        f"{name}: {plan.total:,} requests, {plan.done:,} answered, {plan.failed:,} with an error, "
        f"{plan.to_do:,} to ask, {plan.wrong:,} that can't be asked"
    )
    for model, estimate in plan.by_model.items():
        click.echo(f"  {model}: {_estimate(estimate)}{_price(estimate, model, prices)}")
    minutes = _least_minutes(plan, limit_options)
    if minutes is not None:
        click.echo(f"  at least {duration(minutes * 60)} within the limits given")
    elif plan.to_do:
        click.echo(
            "  time: the service reports its limits with its first response; --requests-per-minute and "
            "--tokens-per-minute make an estimate"
        )


def _estimate(estimate: Estimate) -> str:
    most = estimate.most_completion_tokens
    answers = "answers of unknown length (no max_tokens)" if most is None else f"at most {most:,} tokens of answers"
    return f"{estimate.requests:,} requests, about {estimate.prompt_tokens:,} tokens of prompts, {answers}"


def _price(estimate: Estimate, model: str, prices: Mapping[str, Price] | None) -> str:
    """The most it can cost; empty without prices."""
    if prices is None:
        return ""
    price = prices.get(model)
    cost = _cost(estimate, price)
    return f"; at most {money(cost)}" if cost is not None else "; cost unknown" if price else "; price unknown"


def _cost(estimate: Estimate, price: Price | None) -> float | None:
    if price is None or estimate.most_completion_tokens is None:
        return None
    return price.of(estimate.prompt_tokens, estimate.most_completion_tokens)


def _least_minutes(plan: Plan, limit_options: LimitOptions) -> float | None:
    """The minutes that the given rates need at least, for the model with the most to do; None without rates."""
    minutes = []
    for estimate in plan.by_model.values():
        if limit_options.requests_per_minute is not None:
            minutes.append(estimate.requests / limit_options.requests_per_minute)
        if limit_options.tokens_per_minute is not None:
            tokens = estimate.prompt_tokens + (estimate.most_completion_tokens or 0)
            minutes.append(tokens / limit_options.tokens_per_minute)
    return max(minutes, default=None)
