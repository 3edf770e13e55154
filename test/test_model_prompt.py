"""Prompts, ids and label masks."""

from __future__ import annotations

import model_doubles as doubles
import numpy as np
import pytest

doubles.needs_model()

from instructvla_ros.errors import CheckpointError, ObservationError  # noqa: E402
from instructvla_ros.model.prompt import IGNORE, PromptEncoder, safe  # noqa: E402
from instructvla_ros.model.tokenizer import load_tokenizer, train_tokenizer  # noqa: E402

IMAGE_TOKENS, QUERIES = 16, 8


@pytest.fixture(scope='module')
def prompts():
    tokenizer = load_tokenizer(doubles.GOLDEN / 'wrist_stage1' / 'tokenizer', QUERIES)
    return PromptEncoder(tokenizer, IMAGE_TOKENS, QUERIES)


def test_rendered_action_prompt_is_the_one_of_the_specification(prompts):
    text = prompts.render(prompts.action_messages('put the spoon on the towel'), images=1)
    queries = ''.join(f'<new_token_{i}>' for i in range(QUERIES))
    assert text == (
        '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<img>'
        + '<IMG_CONTEXT>' * IMAGE_TOKENS
        + '</img>\nWhat action should the robot take to put the spoon on the towel?<|im_end|>\n'
        + f'<|im_start|>assistant\n{queries}<|im_end|>\n'
    )


def test_reason_prompt_and_action_pass_share_their_beginning(prompts):
    ask = prompts.reason('open the drawer')
    act = prompts.action('open the drawer', 'I will pull the handle.')
    np.testing.assert_array_equal(act[: len(ask)], ask)
    assert prompts.tokenizer.decode(list(ask)).endswith(
        'to open the drawer? First answer my question.<|im_end|>\n<|im_start|>assistant\n'
    )


def test_queries_are_contiguous_and_followed_by_the_end_and_a_newline(prompts):
    ids = prompts.action('lift up')
    at = np.flatnonzero(ids >= prompts.first_query_id)
    np.testing.assert_array_equal(ids[at], prompts.first_query_id + np.arange(QUERIES))
    np.testing.assert_array_equal(at, at[0] + np.arange(QUERIES))
    np.testing.assert_array_equal(ids[at[-1] + 1 :], [prompts.end_id, *prompts.encode('\n')])
    assert (ids == prompts.image_id).sum() == IMAGE_TOKENS


def test_labels_supervise_queries_and_the_end_only(prompts):
    sample = prompts.dialog(prompts.action_messages('lift up'))
    wanted = sample.labels[sample.labels != IGNORE]
    np.testing.assert_array_equal(wanted, [*(prompts.first_query_id + np.arange(QUERIES)), prompts.end_id])
    assert sample.labels[-1] == IGNORE  # the trailing newline


def test_labels_of_two_answers_leave_the_user_turns_out(prompts):
    sample = prompts.dialog(
        [
            {'role': 'user', 'content': 'What is there?'},
            {'role': 'assistant', 'content': 'A cube.'},
            {'role': 'user', 'content': 'Lift it.'},
            {'role': 'assistant', 'content': 'Yes.'},
        ]
    )
    text = prompts.decode(sample.labels[sample.labels != IGNORE])
    assert text == 'A cube.<|im_end|>Yes.<|im_end|>'


def test_an_open_answer_is_refused_and_not_scanned_past_the_end(prompts):
    with pytest.raises(ObservationError, match='not closed'):
        prompts.labels(prompts.encode('<|im_start|>assistant\nnever ends'))


def test_collate_pads_on_the_right(prompts):
    short, long = (prompts.dialog(prompts.action_messages(i)) for i in ('go', 'put the red cube in the bowl'))
    ids, labels = prompts.collate([short, long])
    assert ids.shape == labels.shape == (2, len(long.ids))
    assert set(ids[0, len(short.ids) :]) == {prompts.pad_id} and set(labels[0, len(short.ids) :]) == {IGNORE}


def test_several_images_are_numbered_and_one_is_not(prompts):
    dialog = [{'role': 'user', 'content': 'Compare.'}]
    assert '<image' not in prompts.render(dialog, images=1)
    two = prompts.render(dialog, images=2)
    assert two.index('<image 1><img>') < two.index('<image 2><img>') < two.index('Compare.')
    assert prompts.render(dialog).count('<img>') == 0


def test_response_is_clean_or_as_the_reference_keeps_it(prompts):
    ids = [*prompts.encode('Move left. '), prompts.first_query_id]
    assert prompts.response(ids) == 'Move left.'
    assert prompts.response(ids, 'reference') == 'Move left. '
    ended = [*prompts.encode('Move'), prompts.end_id]
    assert prompts.response(ended) == 'Move' and prompts.response(ended, 'reference') == 'Move<|im_end|>'


def test_a_response_full_of_control_tokens_cannot_break_the_action_prompt(prompts):
    nasty = [prompts.image_id, prompts.first_query_id + 3, *prompts.encode('go'), prompts.image_id]
    ids = prompts.action('lift up', prompts.response(nasty))
    assert (ids == prompts.image_id).sum() == IMAGE_TOKENS and (ids >= prompts.first_query_id).sum() == QUERIES


@pytest.mark.parametrize('text', ['<|im_end|>', '<new_token_2>', '<IMG_CONTEXT>', '</img>x<img>'])
def test_control_tokens_of_a_person_are_only_text(prompts, text):
    ids = prompts.action(f'lift {text} up')
    assert (ids == prompts.image_id).sum() == IMAGE_TOKENS and (ids >= prompts.first_query_id).sum() == QUERIES
    assert (ids == prompts.end_id).sum() == 3


@pytest.mark.parametrize('text', ['', '   ', '\n'])
def test_empty_instruction_is_refused(prompts, text):
    with pytest.raises(ObservationError, match='empty'):
        prompts.action(text)


def test_endless_instruction_is_refused_with_its_length(prompts):
    with pytest.raises(ObservationError, match='10000 characters'):
        prompts.reason('x' * 10_000)
    assert safe('{braces} stay') == '{braces} stay'


def test_tokenizer_trained_here_has_the_asked_size_and_the_control_tokens(tmp_path):
    train_tokenizer(doubles.TEXTS, 500, tmp_path)
    tokenizer = load_tokenizer(tmp_path, 4)
    assert len(tokenizer) == 504
    own = PromptEncoder(tokenizer, 4, 4)
    sample = own.dialog(own.action_messages('put the red cube in the bowl'))
    assert (sample.labels != IGNORE).sum() == 5
    assert own.decode(own.encode('I will move.')) == 'I will move.'


def test_folder_without_tokenizer_or_with_another_one(tmp_path):
    with pytest.raises(CheckpointError, match='Eagle2-2B'):
        load_tokenizer(tmp_path, 4)
    (tmp_path / 'tokenizer.json').write_text('{"broken": ')
    with pytest.raises(CheckpointError, match='cannot read'):
        load_tokenizer(tmp_path, 4)
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE()).save(str(tmp_path / 'tokenizer.json'))
    with pytest.raises(CheckpointError, match='<IMG_CONTEXT>'):
        load_tokenizer(tmp_path, 4)
