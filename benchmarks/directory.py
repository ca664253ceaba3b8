"""How long does it take to choose 10 of 10,000 agents, and are they the right ones? All take turns in this run.

Needs `faiss-cpu` and `langchain-community`.
"""

import argparse
import importlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from front import Options, benchmark
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from llm_auction_chain import Agent
from llm_auction_chain.directory import AgentDirectory
from llm_auction_chain.models.local.embeddings import StaticEmbeddings

FloatArray = npt.NDArray[np.float64]
Select = Callable[[str], list[str]]

EXACT = "exact, NumPy"
K = 10
EF_SEARCH = (16, 64, 256)
TYPICAL_EF = 64

# Trade: what it offers; what a customer asks.
TRADES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "Plumber": (
        ("burst pipes repaired day and night", "new bathrooms fitted", "drains unblocked"),
        ("My kitchen sink is leaking", "There is no hot water in the shower"),
    ),
    "Guitar school": (
        ("lessons for beginners", "fingerstyle courses for adults", "group classes for children"),
        ("How do I learn to play chords?", "My daughter wants to play an instrument"),
    ),
    "Piano dealer": (
        ("used uprights, tuned and delivered", "grand pianos for hire", "digital keyboards with headphones"),
        ("Where do I buy something to play Chopin on?", "I need a keyboard that does not disturb neighbours"),
    ),
    "Bicycle workshop": (
        ("brakes and gears serviced", "electric bikes sold and leased", "wheels built by hand"),
        ("The chain keeps falling off when I ride", "I want to cycle to work without sweating"),
    ),
    "Car garage": (
        ("winter tyres fitted and stored", "gearboxes overhauled", "annual inspections"),
        ("My engine makes a strange noise", "The warning light on the dashboard stays on"),
    ),
    "Tax adviser": (
        ("returns for freelancers", "bookkeeping for small companies", "inheritance planning"),
        ("Can I deduct my home office?", "I forgot to file last year, what now?"),
    ),
    "Lawyer": (
        ("tenancy disputes", "contracts of employment checked", "divorces settled out of court"),
        ("My landlord keeps the deposit", "I was dismissed without notice"),
    ),
    "Dentist": (
        ("check-ups without waiting", "implants and crowns", "treatment under sedation"),
        ("My tooth hurts when I drink something cold", "I am afraid of the drill"),
    ),
    "Physiotherapist": (
        ("back pain treated", "rehabilitation after operations", "massages for runners"),
        ("I cannot lift my arm any more", "My knee is swollen after jogging"),
    ),
    "Language school": (
        ("Spanish in small groups", "business English by video", "exam preparation in French"),
        ("I move to Madrid in spring and speak no word", "How do I write better letters to customers abroad?"),
    ),
    "Mathematics tutor": (
        ("algebra for pupils", "statistics for students", "calculus before exams"),
        ("I do not understand derivatives", "My son fails at fractions"),
    ),
    "Bakery": (
        ("sourdough bread from a wood oven", "wedding cakes to order", "gluten-free rolls"),
        ("What do I serve guests who cannot eat wheat?", "I need a dessert for fifty people"),
    ),
    "Restaurant": (
        ("vegan lunches", "seafood from the grill", "rooms for large parties"),
        ("Where can we eat fish tonight?", "We look for a place to celebrate a birthday"),
    ),
    "Hotel": (
        ("quiet rooms with breakfast", "conference halls", "apartments by the month"),
        ("I need somewhere to sleep near the station", "Where can a team of thirty meet for two days?"),
    ),
    "Travel agency": (
        ("hiking tours with guides", "cruises for families", "flights and rail passes"),
        ("We want to walk across the mountains in July", "What is a relaxed holiday with small children?"),
    ),
    "Gardener": (
        ("hedges cut and trees felled", "ponds and terraces built", "lawns laid and mown"),
        ("An old oak leans over my roof", "Nothing grows in the shade behind our house"),
    ),
    "Electrician": (
        ("sockets and fuse boxes renewed", "solar panels installed", "charging points for cars"),
        ("The lights flicker every evening", "Can I make my own power on the balcony?"),
    ),
    "Carpenter": (
        ("fitted wardrobes", "stairs and doors of oak", "kitchens made to measure"),
        ("The attic has slanting walls and no cupboard fits", "My table wobbles and the surface is scratched"),
    ),
    "Computer repair": (
        ("laptops cleaned and upgraded", "lost data recovered", "home networks set up"),
        ("My notebook has become terribly slow", "I deleted all photos of the wedding"),
    ),
    "Web studio": (
        ("shops built and hosted", "logos and brochures designed", "search rankings improved"),
        ("Nobody finds my company on the internet", "I want to sell pottery online"),
    ),
    "Veterinarian": (
        ("vaccinations for cats and dogs", "operations on small animals", "visits to farms"),
        ("My puppy eats nothing since yesterday", "The horse limps"),
    ),
    "Estate agent": (
        ("flats let and sold", "houses valued", "offices and warehouses"),
        ("What is my apartment worth?", "We need a larger home with a garden"),
    ),
    "Insurance broker": (
        ("household and liability policies compared", "pension plans", "cover for travellers"),
        ("Who pays if my dog bites somebody?", "How do I save for old age?"),
    ),
    "Photographer": (
        ("weddings and portraits", "product pictures for catalogues", "aerial shots by drone"),
        ("I need a good picture for my application", "Somebody should capture our anniversary"),
    ),
}
# fmt: off
PLACES = (
    "Aberdeen", "Antwerp", "Bergen", "Bilbao", "Bologna", "Bristol", "Cardiff", "Dresden", "Ghent", "Graz", "Hamburg",
    "Krakow", "Leeds", "Leipzig", "Lille", "Linz", "Lyon", "Malmo", "Nantes", "Oslo", "Porto", "Riga",
    "Rotterdam", "Tallinn", "Toulouse", "Turin", "Utrecht", "Vienna", "Warsaw", "Zurich",
)
# fmt: on
MANNERS = (
    "Family business since 1950.",
    "Open on Sundays.",
    "Fixed prices, no surprises.",
    "We also come to your home.",
    "Discounts for students and pensioners.",
    "Appointments online.",
)


def descriptions(count: int) -> list[str]:
    """Return distinct descriptions: of every trade, offer, place and manner, the same ones each time."""
    every = [
        f"{trade} in {place}: {offer}. {manner}"
        for trade, (offers, _) in TRADES.items()
        for offer, place, manner in product(offers, PLACES, MANNERS)
    ]
    return [every[k] for k in np.random.default_rng(0).permutation(len(every))[:count]]


def questions(count: int) -> dict[str, str]:
    """Return distinct queries, in other words than the descriptions, and how the right descriptions begin."""
    frames = (
        "{need} I live in {place}.",
        "{need} Who can help me in {place}?",
        "Hello! {need} Preferably around {place}.",
    )
    every = {
        frame.format(need=need if need.endswith("?") else f"{need}.", place=place): f"{trade} in {place}:"
        for trade, (_, needs) in TRADES.items()
        for need, place, frame in product(needs, PLACES, frames)
    }
    queries = list(every)
    return {queries[k]: every[queries[k]] for k in np.random.default_rng(1).permutation(len(queries))[:count]}


def stores(embeddings: StaticEmbeddings) -> Iterator[tuple[str, VectorStore]]:
    """Return the empty stores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package announces its own end
        faiss = importlib.import_module("faiss")
        community: Any = importlib.import_module("langchain_community.vectorstores")
        docstores: Any = importlib.import_module("langchain_community.docstore.in_memory")
    hnsw = faiss.IndexHNSWFlat(256, 32)
    hnsw.hnsw.efConstruction = 200
    yield "InMemoryVectorStore", InMemoryVectorStore(embeddings)
    for name, index in {"FAISS, flat": faiss.IndexFlatL2(256), "FAISS, HNSW": hnsw}.items():
        yield name, community.FAISS(embeddings, index, docstores.InMemoryDocstore(), {})


def selectors(directories: Mapping[str, AgentDirectory], exact: Select, hnsw: Any) -> dict[str, Select]:
    """Return what is compared: from a query to names."""

    def through(directory: AgentDirectory) -> Select:
        return lambda query: [agent.name for agent in directory.invoke(query)]

    def searching(ef_search: int, select: Select) -> Select:
        def tuned(query: str) -> list[str]:
            hnsw.efSearch = ef_search
            return select(query)

        return tuned

    selects = {EXACT: exact, **{name: through(directory) for name, directory in directories.items()}}
    select = selects.pop("FAISS, HNSW")
    return selects | {f"FAISS, HNSW, efSearch {ef}": searching(ef, select) for ef in EF_SEARCH}


def time_queries(
    selects: Mapping[str, Select], queries: Sequence[str]
) -> tuple[dict[str, FloatArray], dict[str, list[Any]]]:
    """Return the processor's seconds for each query, and the names in each result.

    Every query goes to all of them in a random order, because the later ones find more in caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in selects}
    results: dict[str, list[Any]] = {name: [] for name in selects}
    rng = np.random.default_rng(2)
    for query in queries:
        for name in map(str, rng.permutation(list(selects))):
            start = time.process_time()
            names = selects[name](query)
            seconds[name].append(time.process_time() - start)
            results[name].append(names)
    return {name: np.array(taken) for name, taken in seconds.items()}, results


def recall(similar: FloatArray, results: Sequence[Sequence[str]]) -> float:
    """Return the share of the K most similar among the results; equally similar ones are equally right."""
    least = np.partition(similar, -K, axis=1)[:, -K] - 1e-6
    right = [
        sum(row[int(name)] >= bar for name in names) for row, bar, names in zip(similar, least, results, strict=True)
    ]
    return float(sum(right)) / (K * len(results))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes."""
    parser.add_argument("--agents", type=int, help="10,000, or 2,000 where quick")
    parser.add_argument("--queries", type=int, help="200, or 50 where quick")


def measure(options: Options) -> dict[str, float]:
    """Print the table and return the ratios."""
    agents_of_all, queries_of_all = (2_000, 50) if options.quick else (10_000, 200)
    texts, wanted = descriptions(options.agents or agents_of_all), questions(options.queries or queries_of_all)
    queries = list(wanted)
    embeddings = StaticEmbeddings()
    embeddings.embed_query("read the table")
    start = time.process_time()
    matrix = np.array(embeddings.embed_documents(texts), np.float32)
    print(f"{len(texts)} agents, {len(queries)} queries, k = {K}; embedding all: {time.process_time() - start:.2f} s")

    directories, building = {}, {}
    for name, store in stores(embeddings):
        start = time.process_time()
        agents = (Agent(str(k), lambda prompt, reply: 0.0, context=text) for k, text in enumerate(texts))
        directories[name] = AgentDirectory(store, agents, k=K)
        building[name] = time.process_time() - start
        hnsw = getattr(getattr(store, "index", None), "hnsw", None)

    def exact(query: str) -> list[str]:
        similar = matrix @ np.array(embeddings.embed_query(query), np.float32)
        best = np.argpartition(similar, -K)[-K:]
        return [str(k) for k in best[np.argsort(-similar[best])]]

    selects = selectors(directories, exact, hnsw)
    time_queries(selects, queries[:2])
    seconds, results = time_queries(selects, queries)
    similar = np.array([matrix @ np.array(embeddings.embed_query(query), np.float32) for query in queries], np.float64)
    right = [
        any(texts[int(k)].startswith(wanted[q]) for k in ten) for q, ten in zip(queries, results[EXACT], strict=True)
    ]
    print(f"the right trade in the right place is among the exact {K} for {np.mean(right):.0%} of the queries")
    return report(seconds, {name: recall(similar, names) for name, names in results.items()}, building)


def report(
    seconds: Mapping[str, FloatArray], recalls: Mapping[str, float], building: Mapping[str, float]
) -> dict[str, float]:
    """Print the table and return the ratios."""
    plain = float(np.median(seconds[EXACT]))
    print(f"{'':27} {'median ms':>9} {'p95 ms':>8} {'ratio':>7} {'recall@10':>9} {'build s':>8}")
    for name, taken in seconds.items():
        median, late = np.quantile(taken, (0.5, 0.95)) * 1e3
        built = next((f"{building[kind]:8.2f}" for kind in building if name.startswith(kind)), "")
        print(f"{name:27} {median:9.2f} {late:8.2f} {median / plain / 1e3:7.2f} {recalls[name]:9.3f} {built}")
    keys = {"memory": "InMemoryVectorStore", "flat": "FAISS, flat", "hnsw": f"FAISS, HNSW, efSearch {TYPICAL_EF}"}
    medians = {key: float(np.median(seconds[name])) for key, name in keys.items()}
    ratios = {f"directory_recall_{key}": recalls[name] for key, name in keys.items()}
    return ratios | {f"directory_vs_exact_{key}": taken / plain for key, taken in medians.items()}


if __name__ == "__main__":
    benchmark("directory", __doc__, measure, quick="2,000 agents and 50 queries", add_options=add_options)
