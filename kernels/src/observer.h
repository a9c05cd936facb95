// Tells a caller about every operator of a forward pass; costs one comparison per operator when nobody listens.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>

#include "edge.h"
#include "matrix.h"

namespace edge {

struct Observer {
    edge_observer callback = nullptr;
    void *context = nullptr;
};

// What an operator wrote: `rows` rows of `columns` floats, `stride` apart.
struct StageOutput {
    const float *data;
    int64_t rows, columns, stride;
};

// One operator, from the construction of this object to its end. `bytes` and `operations` are those beside the
// matrices, whose own follow from their shapes: every byte is read once, every weight is used once per token.
class Stage {
   public:
    Stage(const Observer &observer, const char *operation, int64_t layer, const StageOutput &output,
          std::initializer_list<const Matrix *> matrices = {}, int64_t bytes = 0, int64_t operations = 0)
        : observer_(observer) {
        if (observer_.callback == nullptr) return;
        event_ = {operation,   "",          int32_t(layer),  0,
                  0,           0,           uint64_t(bytes), uint64_t(operations),
                  output.data, output.rows, output.columns,  output.stride};
        for (const Matrix *matrix : matrices) {
            event_.bytes += uint64_t(matrix->tiles * matrix->tile_bytes);
            event_.operations += uint64_t(output.rows * matrix->rows * matrix->columns);
        }
        if (matrices.size() > 0) event_.path = kind_name(matrices);
        start_ = Clock::now();
        event_.start_ns = nanoseconds(start_.time_since_epoch());
    }
    Stage(const Stage &) = delete;
    ~Stage() {
        if (observer_.callback == nullptr) return;
        event_.nanoseconds = nanoseconds(Clock::now() - start_);
        observer_.callback(observer_.context, &event_);
    }

   private:
    static const char *kind_name(std::initializer_list<const Matrix *> matrices) {
        static const char *const names[] = {"float32", "float16", "int8", "int4", "ternary"};
        for (const Matrix *matrix : matrices) {
            if (matrix->kind != (*matrices.begin())->kind) return "mixed";
        }
        return names[(*matrices.begin())->kind];
    }

    using Clock = std::chrono::steady_clock;
    static int64_t nanoseconds(Clock::duration time) {
        return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
    }

    const Observer &observer_;
    edge_event event_;
    Clock::time_point start_;
};

}  // namespace edge
