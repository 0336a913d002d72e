"""Labeled wav files of every layout, rate and encoding."""

import csv
import warnings

import numpy as np
import pytest
from scipy.io import wavfile

from jaxlab import data

RATE = 8000


def tone(rate, *, seconds=0.5, hertz=440.0):
  return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path, waveform=None, *, rate=RATE, kind=np.int16):
  path.parent.mkdir(parents=True, exist_ok=True)
  waveform = 0.5 * tone(rate) if waveform is None else waveform
  if kind == np.uint8:
    waveform = np.round(128 + 127 * waveform)
  elif kind != np.float32:
    waveform = np.round(np.iinfo(kind).max * waveform)
  wavfile.write(path, rate, waveform.astype(kind))


def write_table(path, rows):
  path.parent.mkdir(parents=True)
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)


def write_esc(directory):
  sounds = [("rain", 1, True), ("dog", 2, True), ("cat", 1, False), ("dog", 1, True)]
  rows = []
  for i, (category, fold, is_ten) in enumerate(sounds):
    name = f"{fold}-{i}.wav"
    rows.append({"filename": name, "fold": fold, "target": i, "category": category})
    rows[-1]["esc10"] = str(is_ten)
    write(directory / "audio" / name)
  write_table(directory / "meta" / "esc50.csv", rows)


def load(directory, layout="folders", **options):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    return data.load_wav_folders(directory, layout=layout, sample_rate=RATE, **options)


def described(source):
  names = source.features["label"].names
  return [(path.name, names[source[i]["label"]]) for i, path in enumerate(source.paths)]


def test_esc_10_is_a_part_of_esc_50(tmp_path):
  write_esc(tmp_path)
  ten = load(tmp_path, "esc10")
  assert ten.features["label"].names == ["dog", "rain"]
  assert described(ten) == [("1-0.wav", "rain"), ("2-1.wav", "dog"), ("1-3.wav", "dog")]
  assert described(load(tmp_path, "esc50", split="fold1"))[1] == ("1-2.wav", "cat")
  # Numbers of classes do not depend on the split.
  assert load(tmp_path, "esc10", split="fold2").features["label"].names == ["dog", "rain"]
  assert len(load(tmp_path, "esc10", split="fold1+fold2")) == 3
  with pytest.raises(ValueError, match="no part 'fold3', only all and fold1, fold2"):
    load(tmp_path, "esc10", split="fold1+fold3")


def test_urban_sounds_are_in_folders_of_folds(tmp_path):
  rows = [("a.wav", 1, "siren"), ("b.wav", 10, "drilling"), ("c.wav", 2, "siren")]
  for name, fold, _ in rows:
    write(tmp_path / "audio" / f"fold{fold}" / name)
  columns = ("slice_file_name", "fold", "class")
  write_table(tmp_path / "metadata" / "UrbanSound8K.csv", [dict(zip(columns, x)) for x in rows])
  assert [x[1] for x in described(load(tmp_path, "urbansound8k"))] == ["siren", "drilling", "siren"]
  assert described(load(tmp_path, "urbansound8k", split="fold10")) == [("b.wav", "drilling")]
  with pytest.raises(ValueError, match="only all and fold1, fold2, fold10"):
    load(tmp_path, "urbansound8k", split="train")


def test_speech_commands_have_lists_of_two_parts(tmp_path):
  for name in ("yes/0.wav", "yes/1.wav", "no/0.wav", "no/1.wav", "_background_noise_/x.wav"):
    write(tmp_path / name)
  (tmp_path / "validation_list.txt").write_text("yes/1.wav\n")
  with pytest.raises(FileNotFoundError, match="no list .*testing_list"):
    load(tmp_path, "speech_commands")
  (tmp_path / "testing_list.txt").write_text("no/0.wav\n")
  parts = {part: described(load(tmp_path, "speech_commands", split=part)) for part in
           ("train", "validation", "test", "all")}  # fmt: skip
  assert parts["train"] == [("1.wav", "no"), ("0.wav", "yes")]
  assert parts["validation"] == [("1.wav", "yes")] and parts["test"] == [("0.wav", "no")]
  assert len(parts["all"]) == 4
  (tmp_path / "testing_list.txt").write_text("no/0.wav\nno/gone.wav\n")
  assert len(load(tmp_path, "speech_commands", split="train")) == 2
  with pytest.raises(ValueError, match=r"1 of 2 files cannot be read: no/gone.wav"):
    load(tmp_path, "speech_commands", split="test")


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_every_encoding_has_the_same_scale(tmp_path, kind):
  write(tmp_path / "x" / "0.wav", kind=kind)
  example = load(tmp_path)[0]
  assert example["waveform"].dtype == np.float32 and example["label"].dtype == np.int64
  np.testing.assert_allclose(example["waveform"], 0.5 * tone(RATE), atol=0.01)


def test_24_bits_are_read_and_channels_averaged(tmp_path):
  samples = np.round(0.5 * tone(RATE) * (2**23 - 1)).astype("<i4")
  header_only = tmp_path / "x" / "0.wav"
  write(header_only, np.zeros(len(samples)))
  header = bytearray(header_only.read_bytes()[:44])
  body = samples.view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
  for start, size, value in ((4, 4, 36 + len(body)), (28, 4, 3 * RATE), (32, 2, 3), (34, 2, 24),
                             (40, 4, len(body))):  # fmt: skip
    header[start : start + size] = value.to_bytes(size, "little")
  header_only.write_bytes(bytes(header) + body)
  write(tmp_path / "x" / "1.wav", np.stack([tone(RATE), 0 * tone(RATE)], axis=1))
  source = load(tmp_path)
  for i in range(2):
    np.testing.assert_allclose(source[i]["waveform"], 0.5 * tone(RATE), atol=0.01)


def test_other_rates_are_resampled_and_this_is_said(tmp_path):
  for i, rate in enumerate((44_100, RATE, 4000, 44_100)):
    write(tmp_path / "x" / f"{i}.wav", rate=rate)
  said = r"to 8000 Hz: 3 of 4 files, 1 of 4000 Hz, 2 of 44100 Hz"
  with pytest.warns(UserWarning, match=said):
    source = data.load_wav_folders(tmp_path, layout="folders", sample_rate=RATE)
  for i in range(4):
    waveform = source[i]["waveform"]
    assert len(waveform) == RATE // 2
    np.testing.assert_allclose(waveform[200:-200], 0.5 * tone(RATE)[200:-200], atol=0.01)


def test_lengths_may_be_made_equal(tmp_path):
  for i, seconds in enumerate((0.2, 0.6)):
    write(tmp_path / "x" / f"{i}.wav", 0.5 * tone(RATE, seconds=seconds))
  with pytest.raises(ValueError, match="cannot be stacked"):
    data.as_arrays(load(tmp_path))
  arrays = data.as_arrays(load(tmp_path, seconds=0.4))
  assert arrays["waveform"].shape == (2, 3200)
  np.testing.assert_allclose(arrays["waveform"][0, :1600], 0.5 * tone(RATE, seconds=0.2), atol=0.01)
  assert not arrays["waveform"][0, 1600:].any() and arrays["waveform"][1, -100:].any()


def test_unreadable_files_are_counted_and_named(tmp_path):
  for i in range(6):
    write(tmp_path / "x" / f"{i}.wav")
  whole = (tmp_path / "x" / "0.wav").read_bytes()
  for name, content in (("1", b"no sound"), ("2", whole[:1000]), ("3", b""), ("4", whole[:20])):
    (tmp_path / "x" / f"{name}.wav").write_bytes(content)
  write(tmp_path / "x" / "5.wav", np.zeros(0))
  with pytest.raises(ValueError, match=r"5 of 6 files cannot be read: x/1.wav \(.*; x/2.wav \("):
    load(tmp_path)
  with pytest.warns(UserWarning, match="5 of 6 files .* They are left out"):
    source = data.load_wav_folders(
      tmp_path, layout="folders", sample_rate=RATE, skip_unreadable=True
    )
  assert described(source) == [("0.wav", "x")] and len(source) == 1
  (tmp_path / "x" / "0.wav").write_bytes(b"")
  with pytest.raises(ValueError, match=r"0.wav cannot be read any more"):
    source[0]
  with pytest.raises(IndexError):
    source[1]
  with pytest.raises(ValueError, match="6 of 6 files"):
    load(tmp_path, skip_unreadable=True)


def test_bad_arguments_and_missing_files_are_named(tmp_path):
  with pytest.raises(ValueError, match="layout must be one of 'esc10'.*, got 'mp3'"):
    load(tmp_path, "mp3")
  with pytest.raises(ValueError, match=r"seconds must lie in \(0, inf\), got 0"):
    load(tmp_path, seconds=0.0)
  with pytest.raises(FileNotFoundError, match="no directory"):
    load(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match="holds no wav files in the layout 'folders'"):
    load(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"no table .*esc50.csv"):
    load(tmp_path, "esc50")
  write_table(tmp_path / "meta" / "esc50.csv", [{"filename": "x.wav", "fold": 1}])
  with pytest.raises(ValueError, match="esc50.csv has no column 'category'"):
    load(tmp_path, "esc50")


def test_batches_read_the_source(tmp_path):
  for label in ("a", "b"):
    for i in range(3):
      write(tmp_path / label / f"{i}.wav")
  batches = data.batch_iterator(load(tmp_path, seconds=0.25), batch_size=4, seed=0)
  batch = next(batches)
  assert batch["waveform"].shape == (4, 2000) and set(batch["label"]) == {0, 1}
