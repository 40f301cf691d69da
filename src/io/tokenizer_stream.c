/* tokenizer_stream.c - ids to text as they come, in whole UTF-8 characters.
 *   Bytes of the ids join what was held back; complete characters go out, bytes that cannot belong to one go out as
 *   U+FFFD, one for each, and the start of an unfinished character (at most 3 bytes) is held back.
 */
#include "io/tokenizer.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

static size_t put_replacement(char *out, size_t n)
{
    memcpy(out + n, replacement, 3);
    return n + 3;
}

fm_text fm_stream_put(fm_stream *s, const fm_tokenizer *tk, int32_t id)
{
    fm_text piece = fm_tokenizer_decode(tk, s->previous - 1, id);
    if (s->show_control && fm_tokenizer_piece(tk, id).type == FM_PIECE_CONTROL)
        piece = fm_tokenizer_piece(tk, id).text;
    if (id >= 0 && id < INT32_MAX)
        s->previous = id + 1;
    uint8_t in[FM_PIECE_BYTES + 4];
    size_t bytes = (size_t)s->n_held, n = 0;
    memcpy(in, s->held, bytes);
    memcpy(in + bytes, piece.text, piece.bytes);
    bytes += piece.bytes;
    s->n_held = 0;
    for (size_t i = 0; i < bytes;) {
        int length = fm_utf8_length(in + i, bytes - i);
        if (length < 0) {
            s->n_held = (int)(bytes - i);
            memcpy(s->held, in + i, bytes - i);
            break;
        }
        if (length == 0) {
            n = put_replacement(s->text, n);
            i++;
        } else {
            memcpy(s->text + n, in + i, (size_t)length);
            n += (size_t)length;
            i += (size_t)length;
        }
    }
    s->text[n] = 0;
    return (fm_text){s->text, n};
}

fm_text fm_stream_flush(fm_stream *s)
{
    size_t n = 0;
    for (int i = 0; i < s->n_held; i++)
        n = put_replacement(s->text, n);
    s->text[n] = 0;
    s->n_held = 0;
    s->previous = 0;
    return (fm_text){s->text, n};
}
