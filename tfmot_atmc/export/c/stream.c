/* Weights in flash: gaps between nonzeros and codes of values, all rows of a layer in one stream. */
typedef struct {
    const uint8_t *stream;
    const weight *table; /* what the codes stand for; for floats without codes, all values */
    uint8_t form, gap_bits, value_bits;
} weights;

typedef struct {
    const uint8_t *next;
#if HAS_VALUES
    const weight *value;
#endif
#if HAS_SHARED
    uint32_t code; /* what came in the byte of the last gap */
#endif
#if HAS_BITS
    uint32_t ahead, held; /* bits that were read ahead, and how many */
#endif
    uint32_t position; /* of the next weight, from the start of its row */
} reader;

#if HAS_BITS
static inline uint32_t take(reader *r, uint32_t count) {
    while (r->held < count) {
        r->ahead |= (uint32_t)*r->next++ << r->held;
        r->held += 8;
    }
    const uint32_t field = r->ahead & ((1u << count) - 1u);
    r->ahead >>= count;
    r->held -= count;
    return field;
}
#endif

/* Moves the position over the zeros before the next weight. Where both layouts are in use, `packed`
   is a constant of the caller, so that no weight is read with a choice. */
static inline void skip(reader *r, const weights w, const int packed) {
    (void)r;
    (void)w;
    (void)packed;
#if HAS_BITS
    if (packed) {
        if (w.gap_bits) {
            const uint32_t most = (1u << w.gap_bits) - 1u;
            uint32_t gap;
            do {
                gap = take(r, w.gap_bits);
                r->position += gap;
            } while (gap == most);
        }
        return;
    }
#endif
#if HAS_SHARED
    if (IS_SHARED(w)) {
        const uint32_t most = (1u << w.gap_bits) - 1u;
        uint32_t gap;
        do {
            const uint32_t both = *r->next++;
            gap = both & most;
            r->code = both >> w.gap_bits;
            r->position += gap;
        } while (gap == most);
        return;
    }
#endif
#if HAS_BYTES
    if (IS_BYTES(w)) {
        uint32_t gap;
        do {
            gap = *r->next++;
            r->position += gap;
        } while (gap == 255);
    }
#endif
}

static inline reader start(const weights w) {
    reader r;
    r.next = w.stream;
    r.position = 0;
#if HAS_VALUES
    r.value = w.table;
#endif
#if HAS_BITS
    r.ahead = r.held = 0;
#endif
#if HAS_SHARED
    r.code = 0;
#endif
    skip(&r, w, IS_BITS(w));
    return r;
}

/* Returns the next weight, and moves to the one after it. */
static inline weight next_weight(reader *r, const weights w, const int packed) {
    weight v;
    (void)packed;
#if HAS_VALUES
    if (w.value_bits == 0) {
        v = *r->value++;
    } else
#endif
#if HAS_BITS
    if (packed) {
        v = CODE(w, take(r, w.value_bits));
    } else
#endif
#if HAS_SHARED
    if (IS_SHARED(w)) {
        v = CODE(w, r->code);
    } else
#endif
    {
        v = CODE(w, *r->next++);
    }
    r->position++;
    skip(r, w, packed);
    return v;
}
