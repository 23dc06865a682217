// A CommonJS module whose default export rolldown takes for an object.
export { Scrollbars as default } from 'react-custom-scrollbars-2/lib/index.js';
