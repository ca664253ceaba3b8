"""Questions: what ships with the package, and files of one's own and of others."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda

from llm_auction_chain.candidates import ContextPrompt
from llm_auction_chain.descriptions import descriptions_of, lint_context, with_instructions
from llm_auction_chain.errors import AuctionWarning, ConfigurationError
from llm_auction_chain.experiments import Question, Sponsor, builtin_questions, load_questions
from llm_auction_chain.testing import MarkovChatModel

ALL = builtin_questions()
SPONSOR = Sponsor(name="FretHouse", context="FretHouse sells guitars.", phrases=("guitar", "strings"), value=2.0)


class Keen(GenericFakeChatModel):
    def with_structured_output(self, schema, **kwargs):
        return RunnableLambda(lambda messages: schema(level=2 if "FretHouse sells" in messages[0].text else 0))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def names(questions):
    return {question.text: [sponsor.name for sponsor in question.sponsors] for question in questions}


def test_forty_questions_of_eight_domains_ship_with_two_to_five_sponsors_each():
    domains = [question.domain for question in ALL]
    assert len(ALL) >= 40
    assert len(set(domains)) == 8
    assert min(map(domains.count, domains)) >= 5
    assert {len(question.sponsors) for question in ALL} == {2, 3, 4, 5}
    assert len({question.id for question in ALL}) == len({question.text for question in ALL}) == len(ALL)


def test_the_sponsors_that_ship_are_distinct_and_say_who_they_are():
    sponsors = [sponsor for question in ALL for sponsor in question.sponsors]
    assert len({sponsor.name for sponsor in sponsors}) == len(sponsors)
    for sponsor in sponsors:
        assert sponsor.name in sponsor.context
        assert lint_context(sponsor.context) == ()
        assert len(set(map(str.casefold, sponsor.phrases))) == len(sponsor.phrases) >= 5


def test_the_first_eight_questions_are_of_eight_domains():
    assert len({question.domain for question in builtin_questions(limit=8)}) == 8


def test_questions_can_be_fewer_of_chosen_domains_and_with_fewer_sponsors():
    few = builtin_questions(domains=["travel", "home"], limit=3, agents=2)
    assert [question.domain for question in few] == ["travel", "home", "travel"]
    assert all(len(question.sponsors) == 2 for question in few)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domains": ["sports"]}, r"domain must be 'home' or .*, got 'sports'\."),
        ({"limit": 0}, r"limit must be a whole number of at least 1, got 0\."),
        ({"agents": 0}, r"agents must be a whole number of at least 1, got 0\."),
    ],
)
def test_a_domain_that_does_not_exist_and_numbers_below_one_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        builtin_questions(**settings)


def test_mentions_pay_the_value_up_to_three_times():
    replies = [AIMessage("Guitar, guitar, strings and a guitar."), AIMessage("Sing!")]
    assert SPONSOR.reward("mentions").score([], replies) == [6.0, 0.0]


def test_the_log_ratio_compares_with_the_context_prompt_that_describes_this_sponsor_alone():
    prompt = [HumanMessage("Hi")]
    alone = ContextPrompt().describe(prompt, descriptions_of([SPONSOR.context]), 0)
    reward = SPONSOR.reward("log_ratio")
    assert with_instructions(prompt, reward.instructions) == alone
    model, replies = MarkovChatModel(tilts={"FretHouse": (0.0, 2.0, 0.0)}), [AIMessage("bb"), AIMessage("ac")]
    expected = [a - b for a, b in zip(model.score(alone, replies), model.score(prompt, replies), strict=True)]
    assert replace(reward, scorer=model).score(prompt, replies) == pytest.approx(expected)
    assert expected[0] > 0 > expected[1]


def test_a_judge_grades_by_the_rubric_and_three_values_are_the_most():
    judge = Keen(messages=iter([]))
    assert SPONSOR.reward("judge", judge=judge).score([], [AIMessage("Hi")]) == [3.0]
    assert replace(SPONSOR, rubric="Is it short?").reward("judge", judge=judge).rubric == "Is it short?"


def test_a_family_without_its_judge_and_an_unknown_one_are_refused():
    with pytest.raises(ConfigurationError, match="judge must be a chat model with structured output"):
        SPONSOR.reward("judge")
    with pytest.raises(ConfigurationError, match="family must be 'mentions' or 'log_ratio' or 'judge', got 'clicks'"):
        SPONSOR.reward("clicks")


def test_every_sponsor_that_ships_has_an_agent_of_every_family():
    judge = Keen(messages=iter([]))
    for question in ALL:
        for family in ("mentions", "log_ratio", "judge"):
            agents = question.agents(family, judge=judge)
            assert [agent.context for agent in agents] == [sponsor.context for sponsor in question.sponsors]


def test_an_agent_has_the_owner_and_the_category_of_its_sponsor():
    agent = replace(SPONSOR, owner="Tune Group", category="music").agent("mentions")
    assert (agent.payer, agent.categories) == ("Tune Group", ("music",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "The name of a sponsor must be"),
        ({"context": ""}, "context of 'FretHouse' must be a text"),
        ({"phrases": ()}, "phrases of 'FretHouse' must be a list of at least one phrase"),
        ({"phrases": "guitar"}, "phrases of 'FretHouse' must be a list"),
        ({"value": "2"}, "value of 'FretHouse' must be a finite number"),
        ({"category": 3}, "category of 'FretHouse' must be a text"),
    ],
)
def test_fields_that_are_blank_or_of_another_type_are_refused(change, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(SPONSOR, **change)


def test_a_question_has_sponsors_with_names_that_differ_and_does_not_change():
    question = Question(id="q", domain="", text="Hi?", sponsors=[SPONSOR])
    assert question.sponsors == (SPONSOR,)
    with pytest.raises(FrozenInstanceError):
        question.text = "Ho?"
    with pytest.raises(ConfigurationError, match="Two sponsors of 'q' are called 'FretHouse'"):
        replace(question, sponsors=(SPONSOR, SPONSOR))
    with pytest.raises(ConfigurationError, match="sponsors of 'q' must be a list of at least one Sponsor"):
        replace(question, sponsors=())


@pytest.mark.parametrize("name", ["own.jsonl", "own.yaml", "own.json"])
def test_questions_of_your_own_come_back_as_they_were_written(tmp_path, name):
    rows = [
        {"id": question.id, "domain": question.domain, "text": question.text,
         "sponsors": [vars(sponsor) for sponsor in question.sponsors]}
        for question in ALL[:3]
    ]  # fmt: skip
    path = tmp_path / name
    content = "\n".join(map(json.dumps, rows)) if name.endswith("l") and "json" in name else json.dumps(rows)
    path.write_text(content)
    assert load_questions(path) == ALL[:3]
    assert load_questions(path, limit=2, agents=1) == tuple(
        replace(question, sponsors=question.sponsors[:1]) for question in ALL[:2]
    )


def test_questions_may_stand_under_their_key_and_one_text_may_be_asked_twice(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "questions:\n- {id: a, text: Hi, sponsors: [Lumora]}\n- {id: b, text: Hi, sponsors: [Lumora, Veltis]}\n"
    )
    assert [(question.id, len(question.sponsors)) for question in load_questions(path)] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "b"}', r"own.jsonl, line 3 must be a question with its text under one of text, query, prompt"),
        ("[1]", r"own.jsonl, line 3 must be a text, or fields with names, got \[1\]"),
        ("{", "own.jsonl, line 3 is not JSON"),
        ('{"id": "b", "text": "Ho", "sponsors": []}', "line 3: sponsors must be a list of at least one sponsor"),
        ('{"id": "b", "text": "Ho", "sponsors": [{"value": 1}]}', "line 3: a sponsor must be a name, or fields with"),
        ('{"id": "b", "text": "Ho", "sponsors": [{"name": "A", "value": "x"}]}', "line 3: value of 'A' must be a fin"),
        ('{"id": "b", "text": "Ho", "sponsors": [{"name": "A", "bid": 1}]}', "line 3 has an unknown field 'bid'. It"),
        ('{"id": "b", "txt": "Ho", "text": "Ho", "sponsors": ["A"]}', "line 3 has an unknown field 'txt'"),
        ('{"id": "a", "text": "Ho", "sponsors": ["A"]}', "line 3: 'a' is the id of an earlier question"),
    ],
)
def test_an_error_names_the_file_the_line_and_what_is_missing(tmp_path, row, message):
    path = tmp_path / "own.jsonl"
    path.write_text('{"id": "a", "text": "Hi", "sponsors": ["A"]}\n\n' + row + "\n")
    with pytest.raises(ConfigurationError, match=message):
        load_questions(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "Hi", "The file of questions or sponsors must be one of .jsonl, .json, .yaml, .csv and .tsv"),
        ("a.json", "3", "a.json must be a list of questions or sponsors, got 3"),
        ("a.json", '{"a": 3}', "a.json: 'a' must be a list, or columns with `names`, got 3"),
        ("a.yaml", "[", "a.yaml is not YAML"),
        ("a.json", '["Hi"]', "a.json must be a file with a question that has sponsors, got '1 without'. Name sponsors"),
    ],
)
def test_a_file_of_another_format_or_without_sponsors_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        load_questions(tmp_path / name)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(ConfigurationError, match=f"{name} cannot be read"):
            load_questions(tmp_path / name)


RESPONSES = [
    {"id": "1-A", "service": "bing", "meta_topic": "banking", "query": "open account", "response": "..."},
    {"id": "1-B", "service": "bing", "meta_topic": "banking", "query": "open account", "response": "..."},
    {"id": "1-N", "service": "bing", "meta_topic": "banking", "query": "open account", "response": "..."},
    {"id": "2-N", "service": "bing", "meta_topic": "car", "query": "used cars", "response": "..."},
]
LABELS = [
    {"id": "1-A", "advertisement": "Veltis Home Loans", "label": 1, "span": "(0, 3)"},
    {"id": "1-B", "advertisement": "Lumora", "label": 1, "span": "(0, 3)"},
    {"id": "1-N", "advertisement": None, "label": 0, "span": None},
    {"id": "2-N", "advertisement": None, "label": 0, "span": None},
]


def test_responses_of_the_webis_native_ads_give_each_query_the_sponsors_of_its_rows(tmp_path):
    together = [{**row, **label} for row, label in zip(RESPONSES, LABELS, strict=True)]
    with pytest.warns(AuctionWarning, match="1 of 2 questions have no sponsor and are left out"):
        apart = load_questions(
            write(tmp_path / "responses-train.jsonl", RESPONSES),
            sponsors_path=write(tmp_path / "responses-train-labels.jsonl", LABELS),
        )
    with pytest.warns(AuctionWarning):
        assert load_questions(write(tmp_path / "responses.jsonl", together)) == apart
    assert names(apart) == {"open account": ["Veltis Home Loans", "Lumora"]}
    assert (apart[0].id, apart[0].domain) == ("1-A", "banking")
    assert apart[0].sponsors[0].phrases == ("Veltis Home Loans", "Veltis", "Home", "Loans")


def test_labels_of_the_webis_native_ads_of_2025_name_items_and_their_advertisers(tmp_path):
    responses = [{"id": f"7O2-{k}", "search_engine": "brave", "meta_topic": "appliances", "query": "cold brew maker?",
                  "response": "..."} for k in range(3)]  # fmt: skip
    labels = [
        {
            "id": "7O2-0",
            "label": 1,
            "ad_num": "06",
            "advertiser": "Fern & Fable",
            "item": "Brew Bottle",
            "spans": [[1, 2]],
        },
        {"id": "7O2-1", "label": 1, "ad_num": "07", "advertiser": "Fern & Fable", "item": "Tea Tin", "spans": [[1, 2]]},
        {"id": "7O2-2", "label": 0, "ad_num": "", "advertiser": "", "item": "", "spans": []},
    ]
    (question,) = load_questions(
        write(tmp_path / "responses-test.jsonl", responses),
        sponsors_path=write(tmp_path / "responses-test-labels.jsonl", labels),
    )
    assert [sponsor.name for sponsor in question.sponsors] == ["Brew Bottle", "Tea Tin"]
    assert {agent.payer for agent in question.agents("mentions")} == {"Fern & Fable"}
    assert question.sponsors[0].context == "Brew Bottle by Fern & Fable"
    assert question.sponsors[0].phrases == ("Brew Bottle", "Fern & Fable", "Brew", "Bottle")


def test_the_pairs_and_qualities_of_the_webis_native_ads_are_joined(tmp_path):
    (tmp_path / "banking_query_pairs.csv").write_text(",query,advertisement\n0,open account,Lumora\n1,loan,Lumora\n")
    (tmp_path / "banking_qualities.csv").write_text(',advertisement,type,qualities\n0,Lumora,brand,"quick, fair"\n')
    loaded = load_questions(tmp_path / "banking_query_pairs.csv", sponsors_path=tmp_path / "banking_qualities.csv")
    assert names(loaded) == {"open account": ["Lumora"], "loan": ["Lumora"]}
    sponsor = loaded[0].sponsors[0]
    assert (sponsor.context, sponsor.category, loaded[0].id) == ("Lumora: quick, fair", "brand", "open-account")


def test_queries_of_touches_generation_task_bring_their_advertisements(tmp_path):
    row = {
        "query": {"id": "290", "text": "virtual reality workout"},
        "candidates": [{"docid": "d", "score": 1.0, "doc": {"title": "..."}}],
        "advertisements": [{"item": "Kinetara", "type": "game", "qualities": "lively, safe"}, None],
    }
    loaded = load_questions(write(tmp_path / "segments.jsonl", [row]))
    assert names(loaded) == {"virtual reality workout": ["Kinetara"]}
    assert (loaded[0].id, loaded[0].sponsors[0].context) == ("290", "Kinetara: lively, safe")


def test_prompts_of_gem_bench_get_products_of_their_topic_or_with_their_words(tmp_path):
    products = {
        "Travel": {"names": ["Aerolark", "Kayfinder", "Aerolark"], "urls": ["", "", ""],
                   "descs": ["Cheap flights.", "Rents kayaks on lakes.", "Again."]},
        "Food": {"names": ["Sopranella"], "urls": [""], "descs": ["Pasta sauces in jars."]},
    }  # fmt: skip
    (tmp_path / "products.json").write_text(json.dumps(products))
    prompts = ["What sauces go with pasta?", {"prompt": "A week by kayaks", "topic_1": "Travel", "topic_2": "Travel"}]
    (tmp_path / "prompts.json").write_text(json.dumps([*prompts, "Prove it."]))
    with pytest.warns(AuctionWarning, match="1 of 3"):
        loaded = load_questions(tmp_path / "prompts.json", sponsors_path=tmp_path / "products.json")
    assert names(loaded) == {
        "What sauces go with pasta?": ["Sopranella"],
        "A week by kayaks": ["Kayfinder", "Aerolark"],
    }
    with pytest.warns(AuctionWarning):
        fewer = load_questions(tmp_path / "prompts.json", sponsors_path=tmp_path / "products.json", agents=1)
    assert names(fewer)["A week by kayaks"] == ["Kayfinder"]


def test_results_and_candidates_of_gem_bench_are_questions(tmp_path):
    product = {"name": "Tabulex 10", "description": "A large tablet.", "url": "", "category": "Tablets"}
    result = {"prompt": "tablets", "category": "Tablets", "content": "...", "product": product, "price": {"price": 1.7}}
    (tmp_path / "result.json").write_text(json.dumps({"Ad-Chat|CA_Prod|0": [result]}))
    candidates = {"tablets": [{"name": "Tabulex 10", "desc": "A large tablet.", "category": "Tablets", "url": ""}]}
    (tmp_path / "candidates.json").write_text(json.dumps(candidates))
    for name in ("result.json", "candidates.json"):
        (question,) = load_questions(tmp_path / name)
        (sponsor,) = question.sponsors
        assert (question.text, sponsor.context) == ("tablets", "Tabulex 10: A large tablet.")
        assert (sponsor.category, sponsor.phrases) == ("Tablets", ("Tabulex 10", "Tabulex"))


def test_the_tables_of_ca_prod_are_joined_by_their_pairs(tmp_path):
    tables = {
        "queries": "query_id\tquery_text\n7\tdenim shoes",
        "products": (
            "product_id\tad_title\tad_description\twebsite\tsource\tbrand\tcluster_category\n"
            '23\tMistral Slides, Size 10\t"Soft ""denim"" slides"\t\t\tBluewick\t1.0\n24\tSofa\tA sofa\t\t\t\t2.0'
        ),
        "cluster_labels": "cluster_id\tcluster_name\n1\tFootwear",
        "final_balanced_dataset": (
            "query_idx\tproduct_idx\tlabel\tcluster_id\toriginal_query_id\toriginal_product_id\n"
            "0\t0\t1\t1.0\t7\t23\n0\t1\t0\t1.0\t7\t24"
        ),
    }
    for name, table in tables.items():
        (tmp_path / f"{name}.tsv").write_text(table + "\n")
    (question,) = load_questions(tmp_path)
    (sponsor,) = question.sponsors
    assert (question.id, question.text, question.domain) == ("7", "denim shoes", "Footwear")
    assert sponsor.context == 'Mistral Slides, Size 10: Soft "denim" slides'
    assert sponsor.phrases == ("Mistral Slides, Size 10", "Bluewick", "Mistral", "Slides", "Size")
    (tmp_path / "products.tsv").write_text("product_id\tad_title\tad_description\n")
    with pytest.raises(ConfigurationError, match=r"final_balanced_dataset.tsv, line 2 must be a pair with"):
        load_questions(tmp_path)


def test_one_id_for_several_texts_of_others_gets_numbers(tmp_path):
    rows = [{"id": 1, "query": query, "advertisement": "Lumora"} for query in ("a", "b", "c")]
    assert [question.id for question in load_questions(write(tmp_path / "q.jsonl", rows))] == ["1", "1-2", "1-3"]


def test_a_list_of_names_may_be_the_sponsors(tmp_path):
    (tmp_path / "sponsors.json").write_text('["Pasta Piazza", "Lumora"]')
    path = write(tmp_path / "q.jsonl", [{"id": "x", "text": "Which pasta?"}])
    assert names(load_questions(path, sponsors_path=tmp_path / "sponsors.json")) == {"Which pasta?": ["Pasta Piazza"]}
