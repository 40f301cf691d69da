/* test_tokenizer_chat.c - conversations become the text that the chat template makes of them; special tokens are read
 * where they may be, end generation where they should, and are silent. The templates are those of SmolLM2, of ChatML
 * models, of Qwen2.5 (without tools), Llama-2-chat, Llama-3-Instruct, TinyLlama-1.1B-Chat, StableLM-Zephyr and
 * Phi-3-mini; what they make is jinja2 3.1's, set up as in transformers (trim_blocks, lstrip_blocks).
 */
#include "scratch.h"
#include "suite.h"
#include "tokenizer_made.h"

static const fm_chat_message conversation[][4] = {
    {{"user", "Hi!"}},
    {{"system", "Be brief."}, {"user", " Two\nlines "}, {"assistant", " One. "}, {"user", "And?\n"}},
};
static const int64_t n_messages[] = {1, 4};

static const struct {
    const char *program;
    const char *text[2]; /* of the conversations, with a generation prompt; BOS is <s>, EOS </s> */
} templates[] = {
    {"{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>syste"
     "m\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im"
     "_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_gene"
     "ration_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
     {
         "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_"
         "start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Two\nlines <|im_end|>\n<|im_start|>assistant"
         "\n One. <|im_end|>\n<|im_start|>user\nAnd?\n<|im_end|>\n<|im_start|>assistant\n",
     }},
    {"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|"
     ">' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
     {
         "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Two\nlines <|im_end|>\n<|im_start|>assistant"
         "\n One. <|im_end|>\n<|im_start|>user\nAnd?\n<|im_end|>\n<|im_start|>assistant\n",
     }},
    {"{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n    {%- if messages[0]['role'] == 'system' %}\n     "
     "   {{- messages[0]['content'] }}\n    {%- else %}\n        {{- 'You are Qwen.' }}\n    {%- endif %}\n{%- "
     "else %}\n    {%- if messages[0]['role'] == 'system' %}\n        {{- '<|im_start|>system\\n' + messages[0]"
     "['content'] + '<|im_end|>\\n' }}\n    {%- else %}\n        {{- '<|im_start|>system\\nYou are Qwen, create"
     "d by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}\n    {%- endif %}\n{%- endif %}\n{%- fo"
     "r message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not lo"
     "op.first) or (message.role == \"assistant\" and not message.tool_calls) %}\n        {{- '<|im_start|>' + "
     "message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if"
     " add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
     {
         "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_"
         "start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n",
         "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Two\nlines <|im_end|>\n<|im_start|>assistant"
         "\n One. <|im_end|>\n<|im_start|>user\nAnd?\n<|im_end|>\n<|im_start|>assistant\n",
     }},
    {"{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = mes"
     "sages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endi"
     "f %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ ra"
     "ise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if l"
     "oop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS"
     ">>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message"
     "['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] =="
     " 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
     {
         "<s>[INST] Hi! [/INST]",
         "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Two\nlines [/INST] One. </s><s>[INST] And? [/INST]",
     }},
    {"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>"
     "' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.inde"
     "x0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation"
     "_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
     {
         "<s><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
         "\n\n",
         "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_i"
         "d|>\n\nTwo\nlines<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nOne.<|eot_id|><|start_header_"
         "id|>user<|end_header_id|>\n\nAnd?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
     }},
    {"{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] +"
     " eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token"
     " }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}"
     "\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfo"
     "r %}",
     {
         "<|user|>\nHi!</s>\n<|assistant|>\n",
         "<|system|>\nBe brief.</s>\n<|user|>\n Two\nlines </s>\n<|assistant|>\n One. </s>\n<|user|>\nAnd?\n</s>\n<"
         "|assistant|>\n",
     }},
    {"{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] +"
     " '<|endoftext|>' }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n' + message['content']"
     " + '<|endoftext|>' }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + '"
     "<|endoftext|>' }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% e"
     "ndif %}\n{% endfor %}",
     {
         "<|user|>\nHi!<|endoftext|>\n<|assistant|>\n",
         "<|system|>\nBe brief.<|endoftext|>\n<|user|>\n Two\nlines <|endoftext|>\n<|assistant|>\n One. <|endoftext"
         "|>\n<|user|>\nAnd?\n<|endoftext|>\n<|assistant|>\n",
     }},
    {"{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + messag"
     "e['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|"
     "end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'"
     "}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{%"
     " endif %}",
     {
         "<s><|user|>\nHi!<|end|>\n<|assistant|>\n",
         "<s><|system|>\nBe brief.<|end|>\n<|user|>\n Two\nlines <|end|>\n<|assistant|>\n One. <|end|>\n<|user|>\nA"
         "nd?\n<|end|>\n<|assistant|>\n",
     }},
};

/* Characters with <s> and </s>, and beside it a tokenizer_config.json with this template. */
static fm_tokenizer made_with(const char *program, bool add_bos)
{
    static file f;
    static const row r = {
        LLAMA2, "null", "{`id`:1,`content`:`<s>`,`special`:true},{`id`:2,`content`:`</s>`,`special`:true}", "", "", ""};
    nb_writer w = {0};
    nb_json_open(&w, NULL, '{');
    nb_json_put_string(&w, "bos_token", "<s>");
    nb_json_open(&w, "eos_token", '{');
    nb_json_put_string(&w, "content", "</s>");
    nb_json_close(&w, '}');
    nb_json_put_bool(&w, "add_bos_token", add_bos);
    if (program)
        nb_json_put_string(&w, "chat_template", program);
    nb_json_close(&w, '}');
    char *config = nb_json_text(&w);
    (void)scratch_write("tokenizer_config.json", config, strlen(config));
    free(config);
    make_characters(&f, &r);
    fm_tokenizer tk = opened(scratch_write("tokenizer.json", f.byte, f.n));
    ck_assert(tk.bos == 1 && tk.eos == 2 && tk.add_bos == add_bos);
    return tk;
}

START_TEST(conversations_become_what_the_template_makes_of_them)
{
    for (int add_bos = 0; add_bos < 2; add_bos++) {
        fm_tokenizer tk = made_with(templates[_i].program, add_bos), copy;
        uint8_t *data;
        size_t bytes;
        must(fm_tokenizer_to_bytes(&tk, &data, &bytes));
        must(fm_tokenizer_from_bytes(&copy, data, bytes));
        ck_assert_str_eq(fm_chat_template(&copy), templates[_i].program);
        for (int i = 0; i < 2; i++) {
            char *text;
            const char *wanted = templates[_i].text[i];
            must(fm_chat_render(&copy, conversation[i], n_messages[i], true, &text));
            ck_assert_str_eq(text, wanted + (add_bos && strncmp(wanted, "<s>", 3) == 0 ? 3 : 0));
            free(text);
        }
        fm_tokenizer_free(&copy);
        fm_tokenizer_free(&tk);
        free(data);
    }
}
END_TEST

START_TEST(without_a_prompt_the_text_ends_with_the_last_message)
{
    fm_tokenizer tk = made_with(templates[1].program, false);
    char *text;
    must(fm_chat_render(&tk, conversation[0], 1, false, &text));
    ck_assert_str_eq(text, "<|im_start|>user\nHi!<|im_end|>\n");
    free(text);
    fm_tokenizer_free(&tk);
}
END_TEST

static const struct {
    const char *program;
    fm_chat_message message[2];
    int64_t n;
    status wanted;
    const char *words;
} refused[] = {
    {NULL, {{"user", "Hi"}}, 1, NB_USAGE, "without a chat template"},
    {"{{ messages }}", {{"user", "Hi"}}, 1, NB_UNSUPPORTED, "not recognized"},
    {"[INST] {{ mistral }}", {{"user", "Hi"}}, 1, NB_UNSUPPORTED, "not recognized"},
    {"<|im_start|><|im_end|>", {{"user", ""}}, 0, NB_USAGE, "without messages"},
    {"<|im_start|><|im_end|>", {{"system", "x"}}, 1, NB_USAGE, "system message only"},
    {"<|im_start|><|im_end|>", {{"tool", "x"}}, 1, NB_USAGE, "role 'tool'"},
    {"<|im_start|><|im_end|>", {{"user", "x"}, {"system", "y"}}, 2, NB_USAGE, "role 'system'"},
    {"[INST] <<SYS>>", {{"user", "x"}, {"user", "y"}}, 2, NB_USAGE, "take turns"},
    {"[INST] <<SYS>>", {{"assistant", "x"}, {"user", "y"}}, 2, NB_USAGE, "take turns"},
};

START_TEST(what_cannot_be_rendered_is_refused)
{
    fm_tokenizer tk = made_with(refused[_i].program, true);
    char *text = NULL;
    ck_assert_int_eq(fm_chat_render(&tk, refused[_i].message, refused[_i].n, true, &text), refused[_i].wanted);
    ck_assert_msg(strstr(nb_fail_message(), refused[_i].words), "%s", nb_fail_message());
    ck_assert_ptr_null(text);
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(a_jinja_file_goes_before_the_configuration)
{
    (void)scratch_write("chat_template.jinja", "<|user|> eos_token", 18);
    fm_tokenizer tk = made_with("<|im_start|><|im_end|>", true);
    ck_assert_str_eq(fm_chat_template(&tk), "<|user|> eos_token");
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(special_tokens_are_read_where_they_may_be)
{
    static const struct {
        unsigned flags;
        int64_t n;
        int32_t id[6];
    } rows[] = {{0, 5, {268, 63, 50, 118, 65}}, /* U+2581 the, and bytes */
                {FM_PARSE_SPECIAL, 2, {268, 2}},
                {FM_PARSE_SPECIAL | FM_ADD_BOS, 3, {1, 268, 2}},
                {FM_ADD_BOS | FM_ADD_EOS, 7, {1, 268, 63, 50, 118, 65}}};
    fm_tokenizer tk = made_with(NULL, true);
    for (int i = 0; i < COUNT(rows); i++) {
        fm_ids ids = {0};
        must(fm_tokenizer_encode(&tk, &ids, "the</s>", 7, rows[i].flags));
        ck_assert_int_eq(ids.n, rows[i].n);
        for (int64_t k = 0; k < ids.n; k++)
            ck_assert_int_eq(ids.id[k], k < 6 ? rows[i].id[k] : 2);
        fm_ids_free(&ids);
    }
    fm_tokenizer_free(&tk);
}
END_TEST

START_TEST(special_tokens_are_silent_unless_asked)
{
    fm_tokenizer tk = made_with(NULL, true);
    static fm_stream quiet, loud;
    loud.show_control = true;
    static const int32_t ids[] = {1, 267, 2};
    static const char *const texts[][2] = {{"", "<s>"}, {"the", "the"}, {"", "</s>"}};
    for (int i = 0; i < 3; i++) {
        ck_assert_str_eq(fm_stream_put(&quiet, &tk, ids[i]).text, texts[i][0]);
        ck_assert_str_eq(fm_stream_put(&loud, &tk, ids[i]).text, texts[i][1]);
        ck_assert(fm_tokenizer_ends(&tk, ids[i]) == (ids[i] == 2));
    }
    ck_assert(!fm_tokenizer_ends(&tk, -1) && !fm_tokenizer_ends(&tk, 100000));
    fm_tokenizer_free(&tk);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer_chat");
    TCase *t = tcase_create("tokenizer_chat");
    tcase_add_checked_fixture(t, scratch_begin, scratch_end);
    tcase_add_loop_test(t, conversations_become_what_the_template_makes_of_them, 0, COUNT(templates));
    tcase_add_test(t, without_a_prompt_the_text_ends_with_the_last_message);
    tcase_add_loop_test(t, what_cannot_be_rendered_is_refused, 0, COUNT(refused));
    tcase_add_test(t, a_jinja_file_goes_before_the_configuration);
    tcase_add_test(t, special_tokens_are_read_where_they_may_be);
    tcase_add_test(t, special_tokens_are_silent_unless_asked);
    suite_add_tcase(suite, t);
    return run_suite(suite);
}
