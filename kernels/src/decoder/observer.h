// Tells a caller about every operator of a forward pass; costs one comparison per operator when nobody listens.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>

#include "abi/error.h"
#include "edge.h"
#include "linear/linear.h"

namespace edge {

struct Observer {
    edge_observer callback = nullptr;
    void *context = nullptr;
    edge_activations activations = EDGE_ACTIVATIONS_INT8;
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
        if (matrices.size() > 0) event_.kernel = kernel_of(matrices, observer_.activations);
        start_ = Clock::now();
        event_.start_ns = nanoseconds(start_.time_since_epoch());
    }
    Stage(const Stage &) = delete;
    ~Stage() {
        if (observer_.callback == nullptr) return;
        event_.nanoseconds = nanoseconds(Clock::now() - start_);
        const InObserver inside;
        observer_.callback(observer_.context, &event_);
    }

   private:
    static const char *kernel_of(std::initializer_list<const Matrix *> matrices, edge_activations mode) {
        const char *const first = linear_kernel(**matrices.begin(), mode);
        for (const Matrix *matrix : matrices) {
            if (linear_kernel(*matrix, mode) != first) return "several kernels";
        }
        return first;
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
