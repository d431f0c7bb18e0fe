import csv

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from neuro.loggers import Board, Curves, wandb_run


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_row_is_in_the_file_when_it_was_logged(tmp_path):
    curves = Curves(tmp_path)
    for step in range(3):
        curves.log_metrics({"loss": step / 2}, step)
        assert [row["step"] for row in read(tmp_path)] == [str(one) for one in range(step + 1)]


def test_a_new_figure_widens_the_table_and_loses_nothing(tmp_path):
    curves = Curves(tmp_path)
    curves.log_metrics({"loss": 1.5}, 0)
    curves.log_metrics({"val": 2.5}, 1)
    assert read(tmp_path) == [
        {"loss": "1.5", "step": "0", "val": ""},
        {"loss": "", "step": "1", "val": "2.5"},
    ]


def test_a_run_that_goes_on_takes_back_what_comes_again(tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder, upto in ((whole, 6), (part, 4)):
        folder.mkdir()
        curves = Curves(folder)
        for step in range(upto):
            curves.log_metrics({"loss": step / 3, **({"val": 1.0} if step % 2 else {})}, step)
    again = Curves(part)
    again.go_on(3)
    for step in range(3, 6):
        again.log_metrics({"loss": step / 3, **({"val": 1.0} if step % 2 else {})}, step)
    assert (part / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_row_that_is_logged_again_is_there_once_and_others_of_its_step_stay(tmp_path):
    curves = Curves(tmp_path)
    for step in range(4):
        curves.log_metrics({"norm": 2.0}, step)
        curves.log_metrics({"loss": step / 3, "epoch": 0}, step)
    before = read(tmp_path)
    again = Curves(tmp_path)
    again.go_on(4, {"loss": 1.0, "epoch": 0})
    assert read(tmp_path) == before[:-1]
    again.log_metrics({"loss": 1.0, "epoch": 0}, 3)
    assert read(tmp_path) == before


def test_a_figure_of_what_was_taken_back_leaves_no_column(tmp_path):
    curves = Curves(tmp_path)
    curves.log_metrics({"loss": 1.0}, 0)
    curves.log_metrics({"test": 1.0}, 5)
    again = Curves(tmp_path)
    again.go_on(5)
    assert read(tmp_path) == [{"loss": "1.0", "step": "0"}]


def test_a_row_that_a_crash_cut_off_is_dropped(tmp_path):
    curves = Curves(tmp_path)
    for step in range(2):
        curves.log_metrics({"a": 1.0, "b": 2.0}, step)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"1.0,2")
    again = Curves(tmp_path)
    again.go_on(10)
    again.log_metrics({"a": 1.0, "b": 2.0}, 2)
    assert [row["step"] for row in read(tmp_path)] == ["0", "1", "2"]


def test_tensorboard_shows_each_step_once(tmp_path):
    for first, last, begin in ((0, 6, None), (4, 8, 4)):
        board = Board(tmp_path)
        if begin is not None:
            board.go_on(begin)
        for step in range(first, last):
            board.log_metrics({"loss": float(step + last)}, step)
        board.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [one.step for one in events] == list(range(8))
    assert [one.value for one in events][4:] == [12.0, 13.0, 14.0, 15.0]


def test_wandb_goes_on_with_the_run_of_this_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    one, again = (wandb_run(tmp_path / "a", offline=True) for _ in range(2))
    other = wandb_run(tmp_path / "b", offline=True)
    assert one.version == again.version != other.version
    assert again._wandb_init["resume"] == "allow"
