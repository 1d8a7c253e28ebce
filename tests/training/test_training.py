"""The training loop: resume, locks, broken states, non-finite losses, cost."""

import errno
import hashlib
import os
import pickle
import signal
import threading
import zipfile

import pytest
import torch
import yaml
from tiny import tiny_denoiser
from torch import nn

from diffusion.runtime.errors import CheckpointError, NonFiniteError, UserError
from diffusion.training.average import MovingAverage
from diffusion.training.delivered import discard_delivered
from diffusion.training.loop import TrainingRun
from diffusion.training.randomness import seed_dropout
from diffusion.training.settings import TrainingSettings

CPU = torch.device("cpu")


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 4))


def train(folder, settings, stop_after=None, key="key", seed=3, break_at=None, network=None, terminated_at=None):
    """Trains a small network with dropout on a noise-fitting loss; ``stop_after`` raises KeyboardInterrupt,
    ``terminated_at`` sends SIGTERM, and then no state is stored but the one that this leaves."""
    network = network or small_network()
    steps = 0

    def loss(step):
        nonlocal steps
        if steps == stop_after:
            raise KeyboardInterrupt
        if steps == terminated_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(16, 4, generator=step.generator)
        value = (network(x) - x.flip(1)).square().mean()
        if steps == break_at:
            value = value * torch.inf
        steps += 1
        return value

    # Zero seconds between checkpoints: every step leaves one.
    seconds = 0 if terminated_at is None else 1e6
    with TrainingRun(folder, key, seed, CPU, checkpoint_seconds=seconds) as run:
        run.count(network)
        trained = run.fit("only", network, loss, settings, real_images=True)
        return trained.network.state_dict(), trained.cost, run


def dropout_and_noise(folder, seed=0):
    """What dropout keeps and what the step's generator draws, of three steps of two micro-batches each."""
    kept, drawn = [], []
    network = nn.Linear(1, 1)

    def loss(step):
        assert torch.initial_seed() != step.generator.initial_seed()
        drawn.append(torch.rand(4096, generator=step.generator))
        kept.append(nn.functional.dropout(torch.ones(4096), 0.5) > 0)
        return network(drawn[-1][:1, None]).square().mean()

    with TrainingRun(folder, "key", seed, CPU) as run:
        run.fit("only", network, loss, TrainingSettings(steps=3, batch_size=2, gradient_accumulation_steps=2))
    return torch.stack(kept), torch.stack(drawn)


def test_dropout_draws_other_numbers_than_the_noise(tmp_path):
    kept, drawn = dropout_and_noise(tmp_path / "one")
    table = torch.corrcoef(torch.cat([kept.float(), drawn]))
    assert float((table - torch.eye(12)).abs().max()) < 5 / 64  # deviation 1/√4096
    seeds = []
    again, _ = dropout_and_noise(tmp_path / "again")
    other, _ = dropout_and_noise(tmp_path / "other", seed=1)
    assert torch.equal(kept, again)
    assert not (kept == other).all(dim=1).any()
    for number in range(64):
        generator = torch.Generator().manual_seed(number)
        for update in range(3):
            seed_dropout(generator, update)
            seeds.append(torch.initial_seed())
    assert len(set(seeds)) == 3 * 64
    assert not set(seeds) & set(range(64))


SETTINGS = TrainingSettings(steps=20, batch_size=16, learning_rate=1e-2, warmup_steps=3, decay="cosine", ema_decay=0.9)


@pytest.mark.parametrize("ema_decay", [0.9, None])
@pytest.mark.parametrize("stop_after", [1, 7, 19])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop_after, ema_decay):
    settings = SETTINGS.model_copy(update={"ema_decay": ema_decay})
    whole, whole_cost, _ = train(tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", settings, stop_after=stop_after)
    resumed, cost, run = train(tmp_path / "stopped", settings)
    assert whole.keys() == resumed.keys()
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    for measure in ("network_evaluations", "real_images_seen"):
        assert cost[measure] == whole_cost[measure] == 20 * 16
    assert [row["step"] for row in run.log] == list(range(1, 21))


def test_sigterm_leaves_a_state_and_the_resumed_run_has_the_same_bits(tmp_path, capsys):
    """A scheduler's word before it kills: at a time limit, or for a job of more weight."""
    before = signal.getsignal(signal.SIGTERM)
    whole, _, _ = train(tmp_path / "whole", SETTINGS)
    with pytest.raises(SystemExit) as left:
        train(tmp_path / "stopped", SETTINGS, terminated_at=7)
    assert left.value.code == 128 + signal.SIGTERM
    # The signal came within the eighth step; the ninth is the first that begins after it.
    assert "stage only is stored at step 9" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
    resumed, cost, run = train(tmp_path / "stopped", SETTINGS)
    assert "resuming stage only at step 9 of 20" in capsys.readouterr().err
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert cost["network_evaluations"] == 20 * 16
    assert [row["step"] for row in run.log] == list(range(1, 21))


def test_sigterm_at_the_last_step_lets_the_stage_end(tmp_path):
    whole, _, _ = train(tmp_path / "whole", SETTINGS)
    ended, _, _ = train(tmp_path / "told", SETTINGS, terminated_at=18)
    assert all(torch.equal(whole[name], ended[name]) for name in whole)
    assert not (tmp_path / "told" / "checkpoint.pt").exists()


class Clock:
    """Time that passes in steps alone: what ``fit`` sees as one second a look, and ``per_step`` a step."""

    def __init__(self, per_step):
        self.now, self.per_step = 0.0, per_step

    def perf_counter(self):
        return self.now

    def process_time(self):
        return 2 * self.now  # two threads


def train_by_time(folder, settings, monkeypatch, per_step=0.5, **options):
    """:func:`train` on a clock on which a step takes ``per_step`` seconds and nothing else takes any."""
    clock, network = Clock(per_step), small_network()
    network.register_forward_pre_hook(lambda *_: setattr(clock, "now", clock.now + per_step))
    for module in ("loop", "budget", "cost"):
        monkeypatch.setattr(f"diffusion.training.{module}.time", clock)
    return train(folder, settings, network=network, **options)


MINUTE = SETTINGS.model_copy(update={"steps": None, "minutes": 1.0})


def test_a_time_budget_becomes_the_steps_that_fit_beside_the_timed_ones(tmp_path, monkeypatch):
    # 5 untimed and 10 timed steps of half a second leave 52.5 of 60 seconds.
    weights, cost, run = train_by_time(tmp_path / "timed", MINUTE, monkeypatch)
    assert run.steps == {"only": 105}
    assert cost == {
        "steps": 105,
        "network_evaluations": 105 * 16,
        "real_images_seen": 105 * 16,
        "wall_clock_s": pytest.approx(60.0),
        "cpu_s": pytest.approx(120.0),
        "gpu_s": 0,
    }
    counted, _, other = train(tmp_path / "counted", SETTINGS.model_copy(update={"steps": 105}))
    assert other.steps == run.steps
    assert all(torch.equal(weights[name], counted[name]) for name in weights)
    # The rate falls over the steps that were found: the same row of the log by row.
    shown = [[{**row, "wall_clock_s": 0} for row in one.log] for one in (run, other)]
    assert shown[0] == shown[1]


def test_a_slow_device_is_timed_by_fewer_steps(tmp_path, monkeypatch):
    # 15 % of 60 s are over in the third step of 4 s, 25 % in the fourth: 44 s are left, for 11.
    _, cost, run = train_by_time(tmp_path, MINUTE, monkeypatch, per_step=4.0)
    assert run.steps == {"only": 11}
    assert cost["wall_clock_s"] == pytest.approx(60.0)


def test_of_steps_and_minutes_the_first_to_end_counts(tmp_path, monkeypatch):
    both = MINUTE.model_copy(update={"steps": 30})
    assert train_by_time(tmp_path / "1", both, monkeypatch)[2].steps == {"only": 30}
    assert train_by_time(tmp_path / "2", both, monkeypatch, per_step=4.0)[2].steps == {"only": 11}


@pytest.mark.parametrize("stop_after", [3, 12, 16, 60])
def test_a_time_budget_is_fixed_once_also_where_the_next_machine_is_slower(tmp_path, monkeypatch, stop_after):
    whole, _, _ = train(tmp_path / "whole", SETTINGS.model_copy(update={"steps": 105}))
    with pytest.raises(KeyboardInterrupt):
        train_by_time(tmp_path / "stopped", MINUTE, monkeypatch, stop_after=stop_after)
    # Stopped among the timed steps it starts anew; later, the number stands whatever a step takes by then.
    per_step = 0.5 if stop_after < 15 else 2.0
    weights, _, run = train_by_time(tmp_path / "stopped", MINUTE, monkeypatch, per_step=per_step)
    assert run.steps == {"only": 105}
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


@pytest.mark.parametrize(
    ("key", "value", "fewest", "per_step", "fitting"),
    [("warmup_steps", 12, 13, 25.0, 0), ("warmup_steps", 12, 13, 4.5, 9), ("ema_decay", 0.99, 70, 1.0, 45)],
)
def test_a_time_budget_with_too_few_steps_for_its_keys_is_refused(
    tmp_path, monkeypatch, key, value, fewest, per_step, fitting
):
    settings = MINUTE.model_copy(update={key: value})
    needed = rf"{fitting} steps of .* at least {fewest} are needed \(training.{key}\)"
    with pytest.raises(UserError, match=rf"training.minutes: found 1, .* {needed}"):
        train_by_time(tmp_path, settings, monkeypatch, per_step=per_step)


def test_sigterm_among_the_timed_steps_ends_the_job(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as left:
        train_by_time(tmp_path, MINUTE, monkeypatch, terminated_at=2)
    assert left.value.code == 128 + signal.SIGTERM


def test_a_training_needs_an_end():
    with pytest.raises(ValueError, match="found neither steps nor minutes"):
        TrainingSettings(batch_size=8)


@pytest.mark.parametrize(
    ("key", "value", "fewest"), [("warmup_steps", 5, 6), ("snapshots", 3, 8), ("ema_decay", 0.9, 8)]
)
def test_a_training_has_room_for_what_is_asked_of_it(key, value, fewest):
    settings = TrainingSettings(steps=fewest, **{key: value})
    with pytest.raises(ValueError, match=rf"{key}: found {value} with steps {fewest - 1}, expected {fewest} steps or"):
        TrainingSettings(steps=fewest - 1, **{key: value})
    # What it is for: the peak is reached, every snapshot is one, and most of the average is younger than its start.
    assert max(settings.rate(step) for step in range(fewest)) == settings.learning_rate
    assert len(settings.snapshot_steps()) == settings.snapshots
    average, network = MovingAverage(nn.Linear(1, 1), settings.ema_decay or 0.0), nn.Linear(1, 1)
    nn.init.ones_(network.weight)
    average.update_parameters(network)
    nn.init.zeros_(network.weight)
    for _ in range(fewest - 1):
        average.update_parameters(network)
    assert float(average.module.weight) <= 0.5


def test_stages_share_the_minutes_by_their_weights():
    settings = TrainingSettings(steps=10, minutes=4.0)
    stages = [settings.of_stage(weight, 5) for weight in (1, 2, 2)]
    assert [stage.steps for stage in stages] == [10, 20, 20]
    assert [stage.minutes for stage in stages] == pytest.approx([0.8, 1.6, 1.6])


def test_time_counts_what_was_spent_before_the_interruption(tmp_path, monkeypatch):
    clock = Clock(0)
    monkeypatch.setattr("diffusion.training.cost.time", clock)
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        clock.now += 100.5
        run.note_seconds()
        clock.now += 7  # lost: the process is killed before it notes them
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        clock.now += 1
        cost = run.cost()
    assert (cost["wall_clock_s"], cost["cpu_s"], cost["gpu_s"]) == (101.5, 203.0, 0)


def test_the_time_of_the_process_counts_its_threads(tmp_path):
    """Against the system's own count, of all threads."""
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        before = sum(os.times()[:2])
        threads = [threading.Thread(target=lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent = sum(os.times()[:2]) - before
        cost = run.cost()
    assert spent > 0.1
    assert cost["cpu_s"] == pytest.approx(spent, abs=0.05)


def test_two_trainers_on_one_state_refuse_each_other(tmp_path):
    with (
        TrainingRun(tmp_path / "state", "key", 0, CPU),
        pytest.raises(UserError, match=r"a training.s state\): in use by process \d+ on"),
        TrainingRun(tmp_path / "state", "key", 0, CPU),
    ):
        pass


def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch):
    def flock(*_arguments):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match="must support flock"), TrainingRun(tmp_path / "state", "key", 0, CPU):
        pass


def interrupted(folder):
    with pytest.raises(KeyboardInterrupt):
        train(folder, SETTINGS, stop_after=5)
    return folder / "checkpoint.pt"


@pytest.mark.parametrize(
    ("change", "key", "expected"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "key", r".*/state/checkpoint\.pt.*truncated"),
        (lambda file: torch.save({"weights": torch.zeros(3)}, file), "key", "not a training state"),
        (lambda file: None, "other", "another run"),
    ],
    ids=["truncated", "foreign", "of another run"],
)
def test_a_state_that_is_not_this_runs_is_refused(tmp_path, change, key, expected):
    change(interrupted(tmp_path / "state"))
    with pytest.raises(CheckpointError, match=expected):
        train(tmp_path / "state", SETTINGS, key=key)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_flipped_byte_of_a_state_is_refused(tmp_path, share):
    checkpoint = interrupted(tmp_path / "state")
    content = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:  # in what is stored, not in what fills up between
        members = sorted(archive.infolist(), key=lambda member: member.file_size)[-10:]
        stored = archive.read(members[int(share * len(members))])
    content[content.index(stored) + len(stored) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"changed or not a training state .* trains from the beginning"):
        train(tmp_path / "state", SETTINGS)


@pytest.mark.parametrize("part", ["network", "optimiser", "log", "step"])
def test_a_state_that_lacks_a_part_is_refused(tmp_path, part):
    checkpoint = interrupted(tmp_path / "state")
    state = torch.load(checkpoint, weights_only=True)
    del state[part]
    torch.save(state, checkpoint)
    with pytest.raises(CheckpointError, match="a part is missing or of another network"):
        train(tmp_path / "state", SETTINGS)


@pytest.mark.parametrize("content", ["", "ten", "-3 1", "nan 1", "1"])
def test_seconds_that_are_none_are_refused(tmp_path, content):
    interrupted(tmp_path / "state")
    (tmp_path / "state" / "seconds").write_text(content)
    with pytest.raises(CheckpointError, match="found no numbers of seconds"):
        train(tmp_path / "state", SETTINGS)


class Trap:
    """A pickle that would leave a file behind if it were executed."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("write", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save])
def test_a_pickle_is_never_executed(tmp_path, write):
    checkpoint = interrupted(tmp_path / "state")
    write(Trap(tmp_path / "executed"), checkpoint)
    with pytest.raises(CheckpointError):
        train(tmp_path / "state", SETTINGS)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("ended", [False, True])
def test_a_state_brings_its_number_of_threads(tmp_path, capsys, ended):
    """Of a stage that has ended too, whose threads the next one has."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train(tmp_path / "state", SETTINGS) if ended else interrupted(tmp_path / "state")
        torch.set_num_threads(1)
        train(tmp_path / "state", SETTINGS)
        assert torch.get_num_threads() == 2
        assert ended or "2 threads" in capsys.readouterr().err
    finally:
        torch.set_num_threads(before)


def test_a_non_finite_loss_stops_with_step_rate_and_last_good_checkpoint(tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 9, learning rate 0\.00\d+; last good checkpoint: .*step 9"):
        train(tmp_path / "state", SETTINGS, break_at=9)
    state = torch.load(tmp_path / "state" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 9
    assert all(torch.isfinite(value).all() for value in state["network"].values())


def test_stages_cost_and_delivery(tmp_path):
    """A finished stage is loaded with the cost it had, and the second goes on from there."""
    networks = [small_network(), small_network()]

    def run_both(stop_second):
        costs = []
        with TrainingRun(tmp_path / "states" / "own", "key", 0, CPU, checkpoint_seconds=0) as run:
            for stage, network in enumerate(networks):
                run.count(network)
                calls = 0

                def loss(step, network=network, stage=stage):
                    nonlocal calls
                    calls += 1
                    if stage == 1 and calls == stop_second:
                        raise KeyboardInterrupt
                    return network(torch.randn(16, 4, generator=step.generator)).square().mean()

                costs.append(run.fit(str(stage), network, loss, SETTINGS)[1])
            (tmp_path / "result").mkdir(exist_ok=True)
            (tmp_path / "result" / "provenance.json").write_text("{}")
            run.deliver(tmp_path / "result")
        return costs, calls

    with pytest.raises(KeyboardInterrupt):
        run_both(stop_second=5)
    costs, calls = run_both(stop_second=None)
    assert calls == 16  # four of twenty steps were kept
    assert [cost["network_evaluations"] for cost in costs] == [320, 640]
    assert costs[0]["wall_clock_s"] <= costs[1]["wall_clock_s"]
    # Asked for again before anybody took note of it: nothing is trained, the cost is the same.
    repeated, calls = run_both(stop_second=None)
    assert calls == 0
    assert repeated == costs
    (tmp_path / "states" / "unfinished").mkdir()
    # Snakemake removes the outputs of a job that fails, also what another has delivered there: the state stays.
    delivered = (tmp_path / "result" / "provenance.json").read_text()
    (tmp_path / "result" / "provenance.json").unlink()
    discard_delivered(tmp_path / "states")
    (tmp_path / "result" / "provenance.json").write_text("another result")
    discard_delivered(tmp_path / "states")
    assert (tmp_path / "states" / "own").exists()
    (tmp_path / "result" / "provenance.json").write_text(delivered)
    discard_delivered(tmp_path / "states")
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["unfinished"]


@pytest.mark.parametrize(
    ("decay", "expected"), [("constant", [0.25, 0.5, 0.5, 0.5]), ("linear", [0.25, 0.375, 0.25, 0.125])]
)
def test_learning_rates_by_hand(decay, expected):
    settings = TrainingSettings(steps=4, learning_rate=0.5, warmup_steps=2, decay=decay)
    assert [settings.rate(step) for step in range(4)] == pytest.approx(expected)


def test_off_without_quotes_is_what_yaml_makes_of_it():
    assert TrainingSettings(**yaml.safe_load("{steps: 1, compile: off}")).compile == "off"
    with pytest.raises(ValueError, match="compile"):
        TrainingSettings(**yaml.safe_load("{steps: 1, compile: on}"))


def test_copies_of_a_counted_network_are_counted_once(tmp_path):
    import copy

    teacher = tiny_denoiser()
    x, t = torch.zeros(3, 1, 8, 8), torch.tensor(0.5)
    with TrainingRun(tmp_path / "state", "key", 0, CPU) as run:
        run.count(teacher.network)
        student = copy.deepcopy(teacher.network)
        run.count(student)
        run.count(student)
        teacher(x, t)
        student(x, t)
        assert run.evaluations == 6
    teacher(x, t)
    assert run.evaluations == 6
