"""The recognition section of the page, from records alone."""

import json

from test_report import parse, record, start

from mmgen_jax import records, report

GIVENS = (["image"], ["sound"], ["image", "sound"])


def test_report_of_a_recognition_run(tmp_path, capsys):
  start(tmp_path, "recognition")
  out = []
  for split in ("test", "test_speaker"):
    data = {"name": "cats", "split": split, "count": 321, "fingerprint": "f00"}
    for i, given in enumerate(GIVENS):
      more = {"judge": [], "data": data}
      add = lambda m, v, g=given, more=more, **x: out.append(
        record(f"{m}", v, g, "digit", **more, **x)
      )
      add("accuracy/digit", 0.701 + 0.1 * i)
      add("nll/digit", 1.5)
      add("ece/digit", 0.05, reliability=[[0.5, 0.4, 100], [0.9, 0.95, 100]])
      add("temperature/digit", 1.25)
      strengths = {"strengths": [0, 0.1, 0.2]}
      add(
        "robustness/digit/image/noise", 0.6, curve=[0.8, 0.6, 0.4], reference=strengths
      )
      if len(given) == 1:
        add("shapley/digit", 0.4)
        add("utilisation/digit", 0.2)
  records.write(tmp_path, 20, json.loads(json.dumps(out)))
  text = parse(report.write(tmp_path).read_text()).text
  for said in ("70.1", "80.1", "90.1", "image + sound", "test_speaker", "1.25"):
    assert said in text, said
  assert "image: noise" in text and "image + sound: 60.0" in text
  assert "Shapley" in text and "utilisation" in text and "0, 0.1" not in text
  told = capsys.readouterr().out
  assert "digit from image + sound" in told and "speakers never heard" in told


def test_report_of_an_alignment_run(tmp_path):
  start(tmp_path, "alignment")
  more = {"judge": [], "reference": {"candidates": 55}}
  out = [
    record("recall_at_1", 0.25, ["image"], "caption", **more),
    record("recall_at_1_label", 0.875, ["image"], "caption", **more),
    record("median_rank_label", 1.5, ["image"], "caption", **more),
  ]
  records.write(tmp_path, 20, out)
  text = parse(report.write(tmp_path).read_text()).text
  for said in ("image → caption", "25.0", "87.5", "1.5", "55", "first found"):
    assert said in text, said


def test_other_runs_have_no_such_section(tmp_path):
  start(tmp_path)
  records.write(tmp_path, 20, [record("kid", 0.5, [], "image")])
  assert 'id="recognition"' not in report.write(tmp_path).read_text()
