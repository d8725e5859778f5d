"""Claims about the evaluation sets of the game: in the published formats, with answers that are known."""

import json

import pytest

from svlm_jax.eval.truth import read_truth
from svlm_jax.touchline import commentary
from svlm_jax.touchline.commentary import scores
from svlm_jax.touchline.eval_sets.choices import KINDS, UNABLE, find
from svlm_jax.touchline.eval_sets.commentaries import BASELINES
from svlm_jax.touchline.eval_sets.games import Game, changes
from svlm_jax.touchline.eval_sets.writing import write_sets
from svlm_jax.touchline.film import HELD_OUT, annotate, play
from svlm_jax.touchline.judge import judge
from svlm_jax.touchline.match import Kind

SECONDS = 300


@pytest.fixture(scope="module")
def games() -> list[Game]:
    return [Game(HELD_OUT, SECONDS), Game(HELD_OUT + 1, SECONDS)]


@pytest.fixture(scope="module")
def folder(games, tmp_path_factory):
    place = tmp_path_factory.mktemp("sets")
    write_sets(place, games)
    return place


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_game_of_a_set_is_the_one_that_its_film_shows(games):
    world = play(HELD_OUT, SECONDS)
    assert tuple(games[0].words) == annotate(world, "x.mp4", SECONDS).words
    assert [games[0].holder(second) for second in range(SECONDS - 1)] == world.holders[: SECONDS - 1]


def test_what_changes_is_told_once():
    assert list(changes([(0, "a"), (1, "a"), (2, "b"), (5, "a")], 9)) == [(0, 2, "a"), (2, 5, "b"), (5, 9, "a")]


def test_inf_streams_games_have_every_word_with_its_time(folder, games):
    lines = read_lines(folder / "eval_all_metadata.jsonl")
    assert [line["video"] for line in lines] == ["videos/match_1000000.mp4", "videos/match_1000001.mp4"]
    for line, game in zip(lines, games, strict=True):
        assert line["content"] == [list(word) for word in game.words]
        assert all(start < end for start, end, _ in line["content"])


def test_the_truth_of_a_game_has_each_event_and_the_score_at_each_time(folder, games):
    truths = read_truth(folder / "truth.jsonl")
    for game, truth in zip(games, truths.values(), strict=True):
        spans = sorted(value for mention in truth.mentions if mention.kind == "event" for value in mention.values)
        assert [start for start, _, _ in spans] == [second for second, _ in game.when()]
        score = next(mention for mention in truth.mentions if mention.name == "score")
        assert all(before.end == after.start for before, after in zip(score.values, score.values[1:], strict=False))
        for second, text in game.replies.items():
            for claim in scores(text):
                value = next(value for value in score.values if value.start <= second < value.end)
                assert value.text == f"{claim.teams[0]} {claim.goals[0]}-{claim.goals[1]} {claim.teams[1]}"


def test_baselines_are_as_good_as_their_names_say(games):
    for game in games:
        tallies = {name: judge(replies(game), game.events, 0, SECONDS) for name, replies in BASELINES.items()}
        assert tallies["truth"].f1 == tallies["truth"].score_accuracy == 1
        assert tallies["late"].f1 < tallies["errors"].f1 < 0.9 and 0 < tallies["errors"].score_accuracy < 1
        assert tallies["silence"].matches == tallies["silence"].claims == 0


def test_events_of_livesports_have_their_words_and_those_before(folder, games):
    entries = json.loads((folder / "LiveSports-3K-CC.json").read_text())
    assert len(entries) > 4
    for entry in entries:
        assert "GOAL for" in entry["event_asr_text"] and 10 <= entry["end"] - entry["begin"] <= 60
        game = next(game for game in games if game.video == entry["video"])
        assert game.text(0, SECONDS).startswith(f"{entry['preasr_text']} {entry['event_asr_text']}".strip())
    keys = [(entry["video_id"], entry["event_id"]) for entry in entries]
    assert len(set(keys)) == len(keys)
    for name in BASELINES:
        lines = read_lines(folder / "captions" / f"{name}.jsonl")
        assert [(line["video_id"], line["event_id"]) for line in lines] == keys
        assert name != "truth" or [line["pred"] for line in lines] == [entry["event_asr_text"] for entry in entries]
        assert name != "silence" or not any(line["pred"] for line in lines)


def test_published_answers_have_an_item_for_every_second(folder, games):
    for name, replies in BASELINES.items():
        for line, game in zip(read_lines(folder / f"answers/infstreams/{name}/result_0.jsonl"), games, strict=True):
            assert (line["chunk_start"], line["chunk_end"], len(line["items"])) == (0, SECONDS, SECONDS)
            said = {item["start_time"]: item["response"].strip() for item in line["items"]}
            assert {second: text for second, text in said.items() if text} == replies(game)


def read_list(path) -> list:
    return json.loads(path.read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_has_four_options_and_can_be_asked_in_a_game(games, kind):
    for game in games:
        found = find(game, kind, 3)
        assert found or kind == "why", kind
        assert all(len(set(choice.options)) == 4 for choice in found)
        assert [choice.second for choice in found] == sorted(choice.second for choice in found)
        assert find(game, kind, 3) == found


@pytest.mark.parametrize("kind", commentary.QUESTIONS)
def test_the_right_option_is_what_the_game_answers_before_and_after_the_second(games, kind):
    for game in games:
        for choice in find(game, kind, 20):
            for second in (choice.second - 1, choice.second):
                right = commentary.answer(choice.text, game.facts(second), game.holder(second))
                assert choice.options[choice.answer] == right and choice.options.count(right) == 1


def test_right_options_about_events_are_in_the_commentary_at_their_time(games):
    game = games[0]
    for choice in find(game, "now", 9):
        assert game.text(choice.second - 1, choice.second).startswith(choice.options[choice.answer])
    for choice in find(game, "next", 9):
        assert game.text(choice.second, choice.second + 3).startswith(choice.options[choice.answer])
        assert game.text(choice.second - 1, choice.second).endswith("shoot!")
    for choice in find(game, "last", 9):
        said = [text for second, text in game.replies.items() if second < choice.second]
        assert said[-1].startswith(choice.options[choice.answer])
    for choice in find(game, "at", 9):
        second = int(choice.text.removeprefix("What happened at second ").rstrip("?"))
        assert second < choice.second and game.replies[second].startswith(choice.options[choice.answer])
    for choice in find(game, "when", 9):
        second = int(choice.options[choice.answer].removeprefix("At second ").rstrip("."))
        score = choice.text.removeprefix("When did it become ").rstrip("?")
        assert f"{score}." in game.replies[second] and score not in game.text(0, second)
    for choice in find(game, "summary", 9):
        assert choice.options[choice.answer] == game.text(choice.second - 10, choice.second)
    for choice in find(game, "never", 9):
        second = int(choice.text.removeprefix("Who scored the goal at second ").rstrip("?"))
        assert choice.options[choice.answer] == UNABLE and "GOAL" not in game.text(second - 7, second + 8)


def test_ovo_has_its_twelve_tasks_with_counts_steps_and_clues_that_are_true(folder, games):
    items = read_list(folder / "ovo_bench_new.json")
    assert [item["id"] for item in items] == list(range(len(items)))
    tasks = {"EPM", "ASI", "HLD", "OCR", "ACR", "ATR", "STU", "FPD", "OJR", "REC", "SSR", "CRR"}
    assert {item["task"] for item in items} == tasks
    by_video = {game.video: game for game in games}
    for item in items:
        game = by_video[item["video"]]
        goals = [second for second, _ in game.when(Kind.GOAL)]
        for test in item.get("test_info", ()):
            assert 0 < test["realtime"] <= SECONDS
            if item["task"] == "REC":
                assert test["count"] == sum(second < test["realtime"] for second in goals) <= 10
            elif item["task"] == "CRR":
                assert test["type"] == int(test["realtime"] >= item["clue_time"]) and item["clue_time"] == goals[0] + 1
            else:
                spans = zip(item["all_steps"], item["start_time"], item["end_time"], strict=True)
                start, end = next(span for step, *span in spans if step == test["step"])
                assert test["type"] == int(start < test["realtime"] < end)
        if "gt" in item:
            assert item["options"][item["gt"]] == item["answer"] and 0 < item["realtime"] < SECONDS


def test_streamingbench_has_its_ten_types_sequences_in_order_and_orders_that_come_true(folder, games):
    real = [question for entry in read_list(folder / "questions_real.json") for question in entry["questions"]]
    assert len({question["task_type"] for question in real}) == 10
    assert all([option[:3] for option in question["options"]] == ["A. ", "B. ", "C. ", "D. "] for question in real)
    for sequence in read_list(folder / "questions_sqa.json"):
        stamps = [entry["questions"][0]["time_stamp"] for entry in sequence]
        assert len(stamps) > 2 and stamps == sorted(stamps)
    orders = read_list(folder / "questions_proactive.json")
    assert len(orders) > 2
    for entry in orders:
        game = next(game for game in games if entry["video_path"] == f"./{game.video}")
        (order,) = entry["questions"]
        asked, due = (seconds(order[key]) for key in ("time_stamp", "ground_truth_time_stamp"))
        assert order["ground_truth_output"] in game.text(due - 1, due)
        assert order["ground_truth_output"] not in game.text(asked, due - 1)


def seconds(stamp: str) -> int:
    hours, minutes, rest = map(int, stamp.split(":"))
    return 3600 * hours + 60 * minutes + rest


def test_livesports_questions_show_what_answers_them(folder, games):
    questions = read_list(folder / "LiveSports-3K-QA.json")
    assert {question["q_type"] for question in questions} == {"who", "what", "when"}
    assert {question["OCR"] for question in questions} == {0, 1}
    assert len({(question["video_id"], question["question_id"]) for question in questions}) == len(questions)
    for question in questions:
        assert 0 <= question["video_start"] < question["video_end"] < SECONDS and question["answer"] in "ABCD"
        assert question["video_start"] == 0 or question["question"] in ("Who has the ball?", "What happens right now?")


def test_the_same_games_make_the_same_files(folder, games, tmp_path):
    write_sets(tmp_path, games)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.json*"))
    assert len(files) > 12
    assert all((tmp_path / file).read_bytes() == (folder / file).read_bytes() for file in files)
