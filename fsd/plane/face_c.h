/* face.h as C sees it. */
#ifndef FSD_PLANE_FACE_C_H
#define FSD_PLANE_FACE_C_H
#include <stdint.h>
#include "face.h"
#endif
